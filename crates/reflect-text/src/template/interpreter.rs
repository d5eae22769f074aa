//! Runs a template over values that know where their characters came from.
//!
//! minijinja parses the template. Its own evaluation knows strings only by their characters, so the
//! walk over the syntax tree is here: as Jinja does it, with the settings and functions that Hugging
//! Face's `apply_chat_template` gives it.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;

use minijinja::machinery::ast::{BinOpKind, CallArg, Expr, ForLoop, Macro, Stmt, UnaryOpKind};
use minijinja::value::ValueKind;

use super::arguments::Arguments;
use super::clock::Clock;
use super::text::{Text, TextBuilder};
use super::value::{Loop, Outcome, Value};
use super::{filters, methods, operators};

/// A template may take so many steps and write so many bytes.
const MOST_STEPS: u64 = 20_000_000;
/// Nested calls, loops and expressions go so deep.
const DEEPEST: usize = 200;

/// The functions of the environment. `strftime_now` is there where a time is known.
const FUNCTIONS: [&str; 5] = ["range", "dict", "namespace", "raise_exception", "strftime_now"];

/// What the helpers of a rendering share.
#[derive(Debug)]
pub(super) struct Context {
    steps: Cell<u64>,
    /// Whether an input, by its index, is the content of a message.
    is_content: Vec<bool>,
    clock: Option<Clock>,
    /// What the template did with contents that it cannot have meant.
    pub misread: Cell<Misread>,
}

/// Signs that a template wants contents in another shape.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Misread {
    /// It printed a list of parts as Python would show it.
    pub printed_parts: bool,
    /// It printed `None`.
    pub printed_none: bool,
    /// It looped over the characters of a text.
    pub looped_over_text: bool,
    /// It refused the conversation in its own words.
    pub refused: bool,
}

impl Context {
    pub fn new(is_content: Vec<bool>, clock: Option<Clock>) -> Self {
        Self { steps: Cell::new(MOST_STEPS), is_content, clock, misread: Cell::default() }
    }

    /// Counts work, so that no template runs for ever.
    pub fn spend(&self, steps: usize) -> Outcome<()> {
        let left = self.steps.get().checked_sub(steps as u64).ok_or("it takes too many steps")?;
        self.steps.set(left);
        Ok(())
    }

    /// A value as text, with a note if it can't have been meant as text.
    pub fn text(&self, value: &Value) -> Text {
        let text = value.to_text();
        let mut misread = self.misread.get();
        match value {
            Value::None => misread.printed_none = true,
            Value::List(_) | Value::Map(_) if self.is_content(&text) => misread.printed_parts = true,
            _ => return text,
        }
        self.misread.set(misread);
        text
    }

    fn is_content(&self, text: &Text) -> bool {
        text.comes_from(|source| self.is_content.get(source as usize) == Some(&true))
    }

    /// `value[key]`, which is undefined where there is nothing.
    pub fn item(&self, value: &Value, key: &Value) -> Value {
        let at = |length: usize| {
            let index = key.as_int()?;
            usize::try_from(if index < 0 { index + length as i128 } else { index }).ok()
        };
        match value {
            Value::List(items) => at(items.len()).and_then(|at| items.get(at).cloned()).unwrap_or_default(),
            Value::Text(text) => {
                let places = methods::places(text.as_str());
                match at(places.len() - 1).filter(|at| at + 1 < places.len()) {
                    Some(at) => Value::Text(text.slice(places[at]..places[at + 1])),
                    None => Value::Undefined,
                }
            }
            other => other.field(key).unwrap_or_default(),
        }
    }

    /// `a + b`.
    pub fn add(&self, a: &Value, b: &Value) -> Outcome<Value> {
        match (a, b) {
            (Value::Text(a), Value::Text(b)) => {
                self.spend(a.len() + b.len())?;
                Ok(Value::Text(a.concat(b)))
            }
            (Value::List(a), Value::List(b)) => {
                self.spend(a.len() + b.len())?;
                Ok(Value::list(a.iter().chain(b.iter()).cloned().collect()))
            }
            _ => operators::arithmetic("+", a, b, i128::checked_add, |a, b| a + b),
        }
    }
}

/// What comes after a statement.
#[derive(Clone, Copy, PartialEq)]
enum Next {
    Statement,
    Iteration,
    AfterLoop,
}

type Frame = Rc<RefCell<HashMap<String, Value>>>;

/// A macro, or the body of a `call` block, which sees the variables around it.
struct Defined<'t> {
    ast: &'t Macro<'t>,
    around: Option<Vec<Frame>>,
}

/// One rendering.
pub(super) struct Interpreter<'t> {
    context: &'t Context,
    frames: Vec<Frame>,
    macros: Vec<Defined<'t>>,
    out: Vec<TextBuilder>,
    depth: usize,
    loops: usize,
}

/// Runs a template with its variables.
pub(super) fn run<'t>(
    context: &'t Context,
    template: &'t Stmt<'t>,
    variables: HashMap<String, Value>,
) -> Outcome<Text> {
    let Stmt::Template(template) = template else {
        return Err("it is no template".into());
    };
    let mut interpreter = Interpreter {
        context,
        frames: vec![Rc::new(RefCell::new(variables))],
        macros: Vec::new(),
        out: vec![TextBuilder::default()],
        depth: 0,
        loops: 0,
    };
    interpreter.body(&template.children)?;
    Ok(interpreter.out.pop().unwrap_or_default().finish())
}

impl<'t> Interpreter<'t> {
    fn body(&mut self, statements: &'t [Stmt<'t>]) -> Outcome<Next> {
        for statement in statements {
            match self.statement(statement)? {
                Next::Statement => {}
                other => return Ok(other),
            }
        }
        Ok(Next::Statement)
    }

    fn statement(&mut self, statement: &'t Stmt<'t>) -> Outcome<Next> {
        self.context.spend(1)?;
        match statement {
            Stmt::Template(template) => return self.body(&template.children),
            Stmt::EmitRaw(raw) => self.write(|out| out.push_str(raw.raw)),
            Stmt::EmitExpr(emit) => {
                let line = emit.span().start_line;
                let value = self.value(&emit.expr).map_err(|problem| at_line(problem, line))?;
                let text = self.context.text(&value);
                self.context.spend(text.len())?;
                self.write(|out| out.push(&text));
            }
            Stmt::IfCond(condition) => {
                let line = condition.span().start_line;
                let holds = self.value(&condition.expr).map_err(|problem| at_line(problem, line))?.is_true();
                return self.body(if holds { &condition.true_body } else { &condition.false_body });
            }
            Stmt::ForLoop(each) => {
                return self.each(each).map_err(|problem| at_line(problem, each.span().start_line));
            }
            Stmt::Set(set) => {
                let line = set.span().start_line;
                let value = self.value(&set.expr).map_err(|problem| at_line(problem, line))?;
                self.assign(&set.target, value).map_err(|problem| at_line(problem, line))?;
            }
            Stmt::SetBlock(set) => {
                let text = Value::Text(self.captured(&set.body)?);
                let value = match &set.filter {
                    Some(filter) => self.filtered(filter, text)?,
                    None => text,
                };
                self.assign(&set.target, value)?;
            }
            Stmt::FilterBlock(block) => {
                let text = Value::Text(self.captured(&block.body)?);
                let value = self.filtered(&block.filter, text)?;
                let text = self.context.text(&value);
                self.write(|out| out.push(&text));
            }
            Stmt::WithBlock(with) => {
                self.frames.push(Frame::default());
                for (target, value) in &with.assignments {
                    let value = self.value(value)?;
                    self.assign(target, value)?;
                }
                let next = self.body(&with.body);
                self.frames.pop();
                return next;
            }
            Stmt::Macro(declared) => {
                self.macros.push(Defined { ast: declared, around: None });
                self.set(declared.name, Value::Macro(self.macros.len() - 1));
            }
            Stmt::CallBlock(block) => {
                self.macros.push(Defined { ast: &block.macro_decl, around: Some(self.frames.clone()) });
                let caller = Value::Macro(self.macros.len() - 1);
                let line = block.span().start_line;
                let value = self
                    .call(&block.call.expr, &block.call.args, Some(caller))
                    .map_err(|problem| at_line(problem, line))?;
                let text = self.context.text(&value);
                self.write(|out| out.push(&text));
            }
            Stmt::Do(run) => {
                self.call(&run.call.expr, &run.call.args, None)?;
            }
            Stmt::AutoEscape(block) => return self.body(&block.body),
            Stmt::Continue(_) => return Ok(Next::Iteration),
            Stmt::Break(_) => return Ok(Next::AfterLoop),
            #[allow(
                unreachable_patterns,
                reason = "other crates may switch on more statements of the parser"
            )]
            _ => return Err("it uses other templates, of which there are none".into()),
        }
        Ok(Next::Statement)
    }

    fn write(&mut self, write: impl FnOnce(&mut TextBuilder)) {
        if let Some(out) = self.out.last_mut() {
            write(out);
        }
    }

    /// What statements write, in a scope of their own.
    fn captured(&mut self, statements: &'t [Stmt<'t>]) -> Outcome<Text> {
        self.frames.push(Frame::default());
        self.out.push(TextBuilder::default());
        let result = self.body(statements);
        self.frames.pop();
        let text = self.out.pop().unwrap_or_default().finish();
        result.map(|_| text)
    }

    fn each(&mut self, each: &'t ForLoop<'t>) -> Outcome<Next> {
        if each.recursive {
            return Err("recursive loops are not supported".into());
        }
        let over = self.value(&each.iter)?;
        if let Value::Text(text) = &over
            && self.context.is_content(text)
        {
            let misread = Misread { looped_over_text: true, ..self.context.misread.get() };
            self.context.misread.set(misread);
        }
        let mut items = over.items()?;
        if let Some(filter) = &each.filter_expr {
            let mut kept = Vec::new();
            for item in items {
                self.frames.push(Frame::default());
                let holds = self.assign(&each.target, item.clone()).and_then(|()| self.value(filter));
                self.frames.pop();
                if holds?.is_true() {
                    kept.push(item);
                }
            }
            items = kept;
        }
        if items.is_empty() {
            self.frames.push(Frame::default());
            let next = self.body(&each.else_body);
            self.frames.pop();
            return next;
        }
        self.loops += 1;
        let mut result = Ok(());
        for index in 0..items.len() {
            let place = Loop {
                index,
                length: items.len(),
                depth: self.loops,
                previous: index.checked_sub(1).map_or(Value::Undefined, |before| items[before].clone()),
                next: items.get(index + 1).cloned().unwrap_or_default(),
            };
            self.frames.push(Frame::default());
            self.set("loop", Value::Loop(Rc::new(place)));
            let next = self.assign(&each.target, items[index].clone()).and_then(|()| self.body(&each.body));
            self.frames.pop();
            match next {
                Ok(Next::AfterLoop) => break,
                Ok(_) => {}
                Err(problem) => {
                    result = Err(problem);
                    break;
                }
            }
        }
        self.loops -= 1;
        result.map(|()| Next::Statement)
    }

    fn set(&mut self, name: &str, value: Value) {
        if let Some(frame) = self.frames.last() {
            frame.borrow_mut().insert(name.to_owned(), value);
        }
    }

    fn assign(&mut self, target: &'t Expr<'t>, value: Value) -> Outcome<()> {
        match target {
            Expr::Var(variable) => self.set(variable.id, value),
            Expr::List(targets) => {
                let values = value.items()?;
                if values.len() != targets.items.len() {
                    return Err(format!(
                        "{} values are to be unpacked, where {} are expected",
                        values.len(),
                        targets.items.len()
                    ));
                }
                for (target, value) in targets.items.iter().zip(values) {
                    self.assign(target, value)?;
                }
            }
            Expr::GetAttr(attribute) => match self.value(&attribute.expr)? {
                Value::Namespace(fields) => {
                    let mut fields = fields.borrow_mut();
                    match fields.iter_mut().find(|(name, _)| name == attribute.name) {
                        Some((_, held)) => *held = value,
                        None => fields.push((attribute.name.to_owned(), value)),
                    }
                }
                _ => return Err("cannot assign attribute on non-namespace object".into()),
            },
            _ => return Err("nothing can be assigned to that".into()),
        }
        Ok(())
    }

    fn look_up(&self, name: &str) -> Value {
        for frame in self.frames.iter().rev() {
            if let Some(value) = frame.borrow().get(name) {
                return value.clone();
            }
        }
        let known = FUNCTIONS.iter().find(|function| **function == name);
        match known.filter(|name| **name != "strftime_now" || self.context.clock.is_some()) {
            Some(name) => Value::Function(name),
            None => Value::Undefined,
        }
    }

    fn value(&mut self, expression: &'t Expr<'t>) -> Outcome<Value> {
        self.context.spend(1)?;
        self.depth += 1;
        let value = match self.depth > DEEPEST {
            true => Err("it is nested too deeply".into()),
            false => self.evaluate(expression),
        };
        self.depth -= 1;
        value
    }

    fn evaluate(&mut self, expression: &'t Expr<'t>) -> Outcome<Value> {
        Ok(match expression {
            Expr::Var(variable) => self.look_up(variable.id),
            Expr::Const(constant) => of_constant(&constant.value),
            Expr::List(list) => {
                Value::list(list.items.iter().map(|item| self.value(item)).collect::<Outcome<_>>()?)
            }
            Expr::Map(map) => {
                let mut fields: Vec<(Value, Value)> = Vec::new();
                for (key, value) in map.keys.iter().zip(&map.values) {
                    let (key, value) = (self.value(key)?, self.value(value)?);
                    match fields.iter_mut().find(|(other, _)| other.equals(&key)) {
                        Some((_, held)) => *held = value,
                        None => fields.push((key, value)),
                    }
                }
                Value::Map(Rc::new(fields))
            }
            Expr::UnaryOp(operation) => {
                let value = self.value(&operation.expr)?;
                match operation.op {
                    UnaryOpKind::Not => Value::Bool(!value.is_true()),
                    UnaryOpKind::Neg => match &value {
                        Value::Float(number) => Value::Float(-number),
                        other => Value::Int(
                            other
                                .as_int()
                                .and_then(i128::checked_neg)
                                .ok_or_else(|| format!("bad operand type for unary -: '{}'", other.kind()))?,
                        ),
                    },
                }
            }
            Expr::BinOp(operation) => return self.operation(operation.op, &operation.left, &operation.right),
            Expr::Compare(chain) => {
                let mut left = self.value(&chain.expr)?;
                for link in &chain.ops {
                    let right = self.value(&link.expr)?;
                    if !operators::compare(link.op, &left, &right)? {
                        return Ok(Value::Bool(false));
                    }
                    left = right;
                }
                Value::Bool(true)
            }
            Expr::IfExpr(choice) => match (self.value(&choice.test_expr)?.is_true(), &choice.false_expr) {
                (true, _) => self.value(&choice.true_expr)?,
                (false, Some(other)) => self.value(other)?,
                (false, None) => Value::Undefined,
            },
            Expr::GetAttr(attribute) => {
                let value = self.value(&attribute.expr)?;
                self.defined(&value, &attribute.expr)?;
                self.context.item(&value, &Value::text(attribute.name))
            }
            Expr::GetItem(item) => {
                let value = self.value(&item.expr)?;
                self.defined(&value, &item.expr)?;
                let key = self.value(&item.subscript_expr)?;
                self.context.item(&value, &key)
            }
            Expr::Slice(slice) => {
                let value = self.value(&slice.expr)?;
                self.defined(&value, &slice.expr)?;
                let mut bounds = [None; 3];
                for (held, bound) in bounds.iter_mut().zip([&slice.start, &slice.stop, &slice.step]) {
                    if let Some(bound) = bound {
                        *held = match self.value(bound)? {
                            Value::None => None,
                            other => Some(other.as_int().ok_or("slice indices must be integers or None")?),
                        };
                    }
                }
                operators::sliced(&value, bounds)?
            }
            Expr::Filter(_) => return self.filtered_by(expression, None),
            Expr::Test(check) => {
                let value = self.value(&check.expr)?;
                let args = self.arguments(&check.args)?;
                Value::Bool(filters::test(self.context, check.name, &value, args)?)
            }
            Expr::Call(call) => return self.call(&call.expr, &call.args, None),
        })
    }

    /// Refuses to look into a value that is not there, and names it.
    fn defined(&self, value: &Value, expression: &Expr<'_>) -> Outcome<()> {
        match value {
            Value::Undefined => Err(format!("'{}' is undefined", name_of(expression))),
            _ => Ok(()),
        }
    }

    fn operation(&mut self, kind: BinOpKind, left: &'t Expr<'t>, right: &'t Expr<'t>) -> Outcome<Value> {
        let a = self.value(left)?;
        match kind {
            BinOpKind::ScAnd => return if a.is_true() { self.value(right) } else { Ok(a) },
            BinOpKind::ScOr => return if a.is_true() { Ok(a) } else { self.value(right) },
            _ => {}
        }
        let b = self.value(right)?;
        if matches!(kind, BinOpKind::Add) {
            self.defined(&a, left)?;
            self.defined(&b, right)?;
        }
        operators::apply(self.context, kind, &a, &b)
    }

    fn filtered(&mut self, filter: &'t Expr<'t>, value: Value) -> Outcome<Value> {
        self.filtered_by(filter, Some(value))
    }

    /// A filter over what stands before it, or, where nothing does, over `block`.
    fn filtered_by(&mut self, filter: &'t Expr<'t>, block: Option<Value>) -> Outcome<Value> {
        let Expr::Filter(filter) = filter else {
            return Err("a filter is expected".into());
        };
        let value = match (&filter.expr, block) {
            (Some(Expr::Filter(_)), Some(block)) => match &filter.expr {
                Some(inner) => self.filtered_by(inner, Some(block))?,
                None => block,
            },
            (None, Some(block)) => block,
            (Some(expression), _) => self.value(expression)?,
            (None, None) => return Err("a filter has nothing before it".into()),
        };
        let args = self.arguments(&filter.args)?;
        self.context.spend(operators::size(&value))?;
        filters::apply(self.context, filter.name, value, args)
            .map_err(|problem| format!("{problem} (filter {})", filter.name))
    }

    fn arguments(&mut self, given: &'t [CallArg<'t>]) -> Outcome<Arguments> {
        let mut args = Arguments::default();
        for argument in given {
            match argument {
                CallArg::Pos(expression) => args.push(self.value(expression)?),
                CallArg::Kwarg(name, expression) => {
                    let value = self.value(expression)?;
                    args.push_named(name, value)?;
                }
                CallArg::PosSplat(expression) => {
                    self.value(expression)?.items()?.into_iter().for_each(|value| args.push(value));
                }
                CallArg::KwargSplat(expression) => match self.value(expression)? {
                    Value::Map(fields) => {
                        for (name, value) in fields.iter() {
                            args.push_named(self.context.text(name).as_str(), value.clone())?;
                        }
                    }
                    other => {
                        return Err(format!("argument after ** must be a mapping, not {}", other.kind()));
                    }
                },
            }
        }
        Ok(args)
    }

    fn call(&mut self, on: &'t Expr<'t>, given: &'t [CallArg<'t>], caller: Option<Value>) -> Outcome<Value> {
        if let Expr::GetAttr(method) = on {
            let value = self.value(&method.expr)?;
            self.defined(&value, &method.expr)?;
            let mut args = self.arguments(given)?;
            if let Value::Namespace(_) = value {
                return self.call_value(self.context.item(&value, &Value::text(method.name)), args, caller);
            }
            if let (Value::Loop(place), "cycle") = (&value, method.name) {
                let choices = args.rest(0);
                let at = place.index.checked_rem(choices.len()).ok_or("no items for cycling given")?;
                return Ok(choices[at].clone());
            }
            return methods::call(self.context, &value, method.name, args);
        }
        let function = self.value(on)?;
        self.defined(&function, on)?;
        let args = self.arguments(given)?;
        self.call_value(function, args, caller)
    }

    fn call_value(&mut self, function: Value, mut args: Arguments, caller: Option<Value>) -> Outcome<Value> {
        let name = match function {
            Value::Macro(index) => return self.call_macro(index, args, caller),
            Value::Function(name) => name,
            other => return Err(format!("'{}' object is not callable", other.kind())),
        };
        let value = match name {
            "range" => operators::range(self.context, &mut args)?,
            "raise_exception" => {
                let misread = Misread { refused: true, ..self.context.misread.get() };
                self.context.misread.set(misread);
                return Err(args.need(0, "message")?.to_text().as_str().to_owned());
            }
            "strftime_now" => {
                let format = args.need_text(0, "format")?;
                let clock = self.context.clock.as_ref().ok_or("the time is not known")?;
                Value::text(&clock.format(format.as_str()))
            }
            _ => {
                let mut fields: Vec<(Value, Value)> = match args.take(0, "") {
                    None => Vec::new(),
                    Some(Value::Map(fields)) => fields.to_vec(),
                    Some(pairs) => {
                        let mut fields = Vec::new();
                        for pair in pairs.items()? {
                            match pair.items()?.as_slice() {
                                [key, value] => fields.push((key.clone(), value.clone())),
                                _ => return Err("dict() takes pairs".into()),
                            }
                        }
                        fields
                    }
                };
                for (key, value) in args.all_named() {
                    let key = Value::text(&key);
                    fields.retain(|(other, _)| !other.equals(&key));
                    fields.push((key, value));
                }
                match name {
                    "dict" => Value::Map(Rc::new(fields)),
                    _ => {
                        let field = |(key, value): (Value, Value)| (key.to_text().as_str().to_owned(), value);
                        Value::Namespace(Rc::new(RefCell::new(fields.into_iter().map(field).collect())))
                    }
                }
            }
        };
        args.finish(&format!("{name}()"))?;
        Ok(value)
    }

    fn call_macro(&mut self, index: usize, mut args: Arguments, caller: Option<Value>) -> Outcome<Value> {
        let Defined { ast, around } = &self.macros[index];
        let ast = *ast;
        // A macro sees the variables of the template, and none of those where it is called.
        let mut frames = match around {
            Some(frames) => frames.clone(),
            None => self.frames.first().cloned().into_iter().collect(),
        };
        frames.push(Frame::default());
        let left = std::mem::replace(&mut self.frames, frames);
        let loops = std::mem::take(&mut self.loops);
        self.depth += 10;
        self.out.push(TextBuilder::default());
        let run = || {
            if self.depth > DEEPEST {
                return Err("it is nested too deeply".to_owned());
            }
            let first_default = ast.args.len() - ast.defaults.len();
            for (place, parameter) in ast.args.iter().enumerate() {
                let Expr::Var(parameter) = parameter else {
                    continue;
                };
                let value = match args.take(place, parameter.id) {
                    Some(value) => value,
                    None => match place.checked_sub(first_default).and_then(|at| ast.defaults.get(at)) {
                        Some(default) => self.value(default)?,
                        None => Value::Undefined,
                    },
                };
                self.set(parameter.id, value);
            }
            if let Some(caller) = caller {
                self.set("caller", caller);
            }
            std::mem::take(&mut args).finish(&format!("macro '{}'", ast.name))?;
            self.body(&ast.body)
        };
        let result = run();
        self.frames = left;
        self.loops = loops;
        self.depth -= 10;
        let text = self.out.pop().unwrap_or_default().finish();
        result.map(|_| Value::Text(text))
    }
}

fn at_line(problem: String, line: u16) -> String {
    if problem.contains(" (line ") { problem } else { format!("{problem} (line {line} of the template)") }
}

/// How an expression is named in a message.
fn name_of(expression: &Expr<'_>) -> String {
    match expression {
        Expr::Var(variable) => variable.id.to_owned(),
        Expr::GetAttr(attribute) => attribute.name.to_owned(),
        Expr::GetItem(item) => match &item.subscript_expr {
            Expr::Const(constant) => constant.value.to_string(),
            _ => "item".to_owned(),
        },
        other => other.description().to_owned(),
    }
}

fn of_constant(constant: &minijinja::Value) -> Value {
    match constant.kind() {
        ValueKind::Bool => Value::Bool(constant.is_true()),
        ValueKind::Number => match i128::try_from(constant.clone()) {
            Ok(number) if constant.is_integer() => Value::Int(number),
            _ => Value::Float(f64::try_from(constant.clone()).unwrap_or(f64::NAN)),
        },
        ValueKind::String => Value::text(constant.as_str().unwrap_or_default()),
        ValueKind::None => Value::None,
        _ => Value::Undefined,
    }
}
