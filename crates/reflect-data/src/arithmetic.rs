//! The value of an arithmetic expression as people write it in a solution: `1/2*(3+4)`, `5%`,
//! `1,200 x 3`.

/// How deep parentheses and signs may nest: more is no arithmetic that anyone wrote.
const DEPTH: usize = 64;

/// The value of an expression, or `None` when it is not one or has no finite value.
pub fn evaluate(expression: &str) -> Option<f64> {
    let symbols: Vec<char> = expression
        .chars()
        .filter(|character| !character.is_whitespace() && !matches!(character, ',' | '$'))
        .collect();
    let mut parser = Parser { symbols: &symbols, at: 0 };
    let value = parser.sum(0)?;
    (parser.at == symbols.len() && value.is_finite()).then_some(value)
}

/// Whether `stated` is a right way to write `value`: the same, or rounded or cut to the decimals
/// that it shows.
pub fn states(stated: &str, value: f64) -> bool {
    let Some(number) = evaluate(stated) else { return false };
    if same(number, value) {
        return true;
    }
    let decimals = stated.split_once('.').map_or(0, |(_, decimals)| decimals.len().min(9));
    let unit = 0.1_f64.powi(decimals as i32);
    // A whole number stands for a fraction only where the text rounds on purpose, as in dozens.
    decimals > 0 && (number - value).abs() < unit * (1.0 + 1e-9)
}

/// Whether two values are the same but for the rounding of binary fractions.
pub fn same(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-6 * a.abs().max(b.abs()).max(1.0)
}

/// An equation in a text whose left side can be worked out.
#[derive(Clone, Debug, PartialEq)]
pub struct Equation {
    /// What the left side comes to.
    pub value: f64,
    /// Whether the right side says so.
    pub holds: bool,
}

/// The equations of a line: an expression with an operator, `=`, and a number. In `a*b = c+d = e`
/// each part is compared with the number at the end of its neighbour; what can't be worked out is
/// left out.
pub fn equations(line: &str) -> Vec<Equation> {
    let equation = |(left, right): (&str, &str)| {
        let value = evaluate(left)?;
        // `3/4*100 = 75%` and `3/4 = 75%` are both said.
        let percent = right.strip_suffix('%').is_some_and(|number| states(number, value));
        Some(Equation { value, holds: percent || states(right, value) })
    };
    sides_of_equations(line).into_iter().filter_map(equation).collect()
}

/// The expressions with an operator in a line, each with the number that it is said to come to.
pub(crate) fn sides_of_equations(line: &str) -> Vec<(&str, &str)> {
    let sides: Vec<&str> = line.split('=').collect();
    let sides = sides.windows(2).filter_map(|pair| {
        let left = trailing_expression(pair[0])?;
        let right = leading_number(pair[1].trim_start().trim_start_matches('$'))?;
        let operator = ['+', '-', '−', '*', '×', 'x', '/', '÷'];
        left.trim_start_matches(['-', '−']).contains(operator).then_some((left, right))
    });
    sides.collect()
}

/// The longest end of a text that could be an expression; `None` when something before it belongs
/// to it, as in `n + 4` or `1 1/2`.
fn trailing_expression(text: &str) -> Option<&str> {
    let mut start = text.len();
    // What stands right of the gap, and whether there is one.
    let (mut right, mut gap) = (None::<char>, false);
    for (place, character) in text.char_indices().rev() {
        if character.is_whitespace() {
            gap = true;
            continue;
        }
        let part = character.is_ascii_digit() || "+-−*×x/÷().,%$".contains(character);
        let ends_number = character.is_ascii_digit() || ".,)%".contains(character);
        let begins_number = right.is_some_and(|next| next.is_ascii_digit() || "($.".contains(next));
        // Between numbers `x` is an operator, elsewhere a name.
        if !part || (gap && ends_number && begins_number) || (character == 'x' && !begins_number) {
            break;
        }
        (start, right, gap) = (place, Some(character), false);
    }
    let (before, expression) = text.split_at(start);
    let before = before.trim();
    // The number or the sign of a list item belongs to nothing.
    let item = before.is_empty() || before.strip_suffix(['.', ')']).is_some_and(is_number);
    let expression = expression.trim();
    let bullet = expression.strip_prefix("- ").or_else(|| expression.strip_prefix("* "));
    match bullet {
        Some(rest) if item => return Some(rest),
        _ => {}
    }
    let expression = expression.strip_prefix([',', ')']).unwrap_or(expression).trim_start();
    let hanging = expression.starts_with(['+', '*', '×', '/', '÷'])
        || expression.starts_with(['-', '−', 'x']) && !item
        || before.ends_with(|last: char| last.is_ascii_digit())
        || before.ends_with(['.', ')']) && !item && gap_of_numbers(before, expression);
    (!hanging).then_some(expression)
}

/// Whether two numbers stand side by side, as a whole number and its fraction do.
fn gap_of_numbers(before: &str, expression: &str) -> bool {
    let digit = |symbol: char| symbol.is_ascii_digit();
    before.trim_end_matches(['.', ')']).ends_with(digit) && expression.starts_with(digit)
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|symbol| symbol.is_ascii_digit())
}

/// The number at the start of a text, with its commas, its decimals and its percent sign; `None`
/// when an operator or a fraction makes it part of something longer.
fn leading_number(text: &str) -> Option<&str> {
    let end = text
        .char_indices()
        .find(|(place, symbol)| {
            let sign = *place == 0 && matches!(symbol, '-' | '−');
            !symbol.is_ascii_digit() && !matches!(symbol, '.' | ',') && !sign
        })
        .map_or(text.len(), |(place, _)| place);
    let number = text.get(..end)?.trim_end_matches(['.', ',']);
    let number = match text.get(number.len()..)?.strip_prefix('%') {
        Some(_) => text.get(..=number.len())?,
        None => number,
    };
    let rest = text.get(number.len()..)?.trim_start();
    let minus = rest
        .strip_prefix(['-', '−'])
        .is_some_and(|rest| rest.trim_start().starts_with(|c: char| c.is_ascii_digit()));
    let longer = minus
        || rest.starts_with(['+', '*', '×', '/', '÷'])
        || rest.starts_with(|c: char| c.is_ascii_digit());
    (number.contains(|symbol: char| symbol.is_ascii_digit()) && !longer).then_some(number)
}

/// A descent over sums, products and signs.
struct Parser<'a> {
    symbols: &'a [char],
    at: usize,
}

impl Parser<'_> {
    fn peek(&self) -> Option<char> {
        self.symbols.get(self.at).copied()
    }

    fn sum(&mut self, depth: usize) -> Option<f64> {
        let mut value = self.product(depth)?;
        while let Some(sign @ ('+' | '-' | '−')) = self.peek() {
            self.at += 1;
            let other = self.product(depth)?;
            value = if sign == '+' { value + other } else { value - other };
        }
        Some(value)
    }

    fn product(&mut self, depth: usize) -> Option<f64> {
        let mut value = self.factor(depth)?;
        while let Some(sign @ ('*' | '×' | 'x' | 'X' | '/' | '÷')) = self.peek() {
            self.at += 1;
            let other = self.factor(depth)?;
            value = if matches!(sign, '/' | '÷') { value / other } else { value * other };
        }
        Some(value)
    }

    fn factor(&mut self, depth: usize) -> Option<f64> {
        if depth > DEPTH {
            return None;
        }
        let mut value = match self.peek()? {
            '-' | '−' => {
                self.at += 1;
                return Some(-self.factor(depth + 1)?);
            }
            '(' => {
                self.at += 1;
                let value = self.sum(depth + 1)?;
                (self.peek()? == ')').then_some(())?;
                self.at += 1;
                value
            }
            _ => self.number()?,
        };
        while self.peek() == Some('%') {
            self.at += 1;
            value /= 100.0;
        }
        Some(value)
    }

    fn number(&mut self) -> Option<f64> {
        let start = self.at;
        while self.peek().is_some_and(|symbol| symbol.is_ascii_digit() || symbol == '.') {
            self.at += 1;
        }
        let digits: String = self.symbols.get(start..self.at)?.iter().collect();
        digits.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn values() {
        let cases = [
            ("48/2", Some(24.0)),
            ("2+3*4", Some(14.0)),
            ("(2+3)*4", Some(20.0)),
            ("10-4-3", Some(3.0)),
            ("$1,200 x .5", Some(600.0)),
            ("-5+2", Some(-3.0)),
            ("50%*80", Some(40.0)),
            ("7÷2", Some(3.5)),
            ("1/0", None),
            ("", None),
            ("2+", None),
            ("(2", None),
            ("2 apples", None),
            ("1.2.3", None),
        ];
        for (expression, value) in cases {
            assert_eq!(evaluate(expression), value, "{expression}");
        }
    }

    #[test]
    fn stated_values_may_be_rounded_to_their_decimals() {
        assert!(states("0.33", 1.0 / 3.0) && states("0.67", 2.0 / 3.0) && states("0.66", 2.0 / 3.0));
        assert!(states("24.0", 24.0) && states("1,200", 1200.0));
        assert!(
            !states("0.35", 1.0 / 3.0) && !states("34", 33.0) && !states("33", 33.4) && !states("x", 1.0)
        );
    }

    #[test]
    fn equations_are_found_in_sentences() {
        let holds = |line: &str| equations(line).iter().map(|found| found.holds).collect::<Vec<_>>();
        assert_eq!(holds("She sold 48/2 = 24 clips in May."), [true]);
        assert_eq!(holds("1. 3 + 4 = 7"), [true]);
        assert_eq!(holds("- 3 + 4 = 7"), [true]);
        assert_eq!(holds("In all, 80,000*1.5=$130,000"), [false]);
        assert_eq!(holds("17 * 4 = 78, and 2 × 3 = 6"), [false, true]);
        assert_eq!(holds("half is 50% * 80 = 40.0."), [true]);
        assert_eq!(holds("5 - 7 = -2"), [true]);
        // What is part of something longer can't be judged.
        assert!(holds("n + 4 + 2 = 8, 8 x 1 1/2 = 12, 7 ft * 3/4 = 5, 3*2 = 7 - 1").is_empty());
        assert!(holds("3x-5 = 16").is_empty());
        assert_eq!(holds("100 - 5 = 95%, .25/.05 = 5"), [true, true]);
        // The middle of a chain is an expression itself.
        assert_eq!(holds("17*24 = 340 + 68 = 408"), [true]);
        assert!(holds("x = 5 is 5 = 5, a = b, box x 3 = 4, = =").is_empty());
    }

    proptest! {
        #[test]
        fn no_line_panics(text in "[-+*/().,%x$= 0-9a]{0,80}", any in ".*") {
            equations(&text);
            equations(&any);
        }

        #[test]
        fn no_input_panics(text in "[-+*/().%x0-9a]{0,200}", any in ".*") {
            evaluate(&text);
            states(&any, 1.0);
        }
    }

    #[test]
    fn deep_nesting_is_refused() {
        assert_eq!(evaluate(&"(".repeat(100_000)), None);
        assert_eq!(evaluate(&"-".repeat(100_000)), None);
    }
}
