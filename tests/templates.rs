//! Prompts of the chat templates that are out there, against transformers: `golden/templates`.
//!
//! Each line of `golden.jsonl` is what one template makes of one conversation. Three tests look at it: the ids, what becomes of special
//! tokens that somebody typed, and where the contents of the messages stand.

use std::collections::BTreeMap;

use reflect_tests::golden;
use reflect_text::{ChatTemplate, Clock, Message, RenderOptions, Rendered, Tokenizer};
use serde::Deserialize;
use serde_json::{Value, json};

#[derive(Deserialize)]
struct Index {
    today: String,
    templates: BTreeMap<String, Template>,
    conversations: BTreeMap<String, Conversation>,
    /// By tokenizer, because it is that one's special tokens that are typed.
    injected: BTreeMap<String, BTreeMap<String, Conversation>>,
}

#[derive(Deserialize)]
struct Template {
    tokenizer: String,
    bos: Option<String>,
    eos: Option<String>,
}

#[derive(Deserialize)]
struct Conversation {
    messages: Value,
    tools: Option<Value>,
    prompt: Option<bool>,
}

#[derive(Deserialize)]
struct Row {
    template: String,
    conversation: String,
    text: Option<String>,
    error: Option<String>,
    /// Whether the template itself refuses, and not Python while it runs.
    #[serde(default)]
    raised: bool,
    #[serde(default)]
    ids: Vec<u32>,
    control: Option<Vec<u32>>,
    #[serde(default)]
    ranges: Vec<(usize, usize, usize)>,
    decoded: Option<String>,
}

/// A row and what we make of its conversation.
struct Case {
    row: Row,
    ours: Result<Rendered, String>,
}

struct Cases {
    cases: Vec<Case>,
    tokenizers: BTreeMap<String, Tokenizer>,
    index: Index,
}

fn read(path: &str) -> String {
    let path = golden::root().join("templates").join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Every row with our rendering of it.
fn cases() -> Cases {
    let index: Index = serde_json::from_str(&read("index.json")).expect("index.json parses");
    let mut tokenizers = BTreeMap::new();
    let mut templates = BTreeMap::new();
    for (name, template) in &index.templates {
        let json = read(&format!("tokenizers/{}.json", template.tokenizer));
        let config = json!({ "bos_token": template.bos, "eos_token": template.eos }).to_string();
        let tokenizer = Tokenizer::from_json(json.as_bytes(), Some(config.as_bytes()))
            .unwrap_or_else(|error| panic!("the tokenizer of {name}: {error}"));
        let source = read(&format!("{name}/chat_template.jinja"));
        let compiled = ChatTemplate::of_checkpoint(&tokenizer, Some(&source))
            .map(|template| template.expect("a template was given"))
            .map_err(|error| error.to_string());
        tokenizers.insert(name.clone(), tokenizer);
        templates.insert(name.clone(), compiled);
    }
    let cases = read("golden.jsonl")
        .split('\n')
        .filter(|line| !line.is_empty())
        .map(|line| {
            let row: Row = serde_json::from_str(line).expect("a row parses");
            let injected = &index.injected[&index.templates[&row.template].tokenizer];
            let conversation = index
                .conversations
                .get(&row.conversation)
                .or_else(|| injected.get(&row.conversation))
                .expect("the conversation is in the index");
            let tokenizer = &tokenizers[&row.template];
            let ours = templates[&row.template]
                .as_ref()
                .map_err(Clone::clone)
                .and_then(|template| render(template, tokenizer, conversation, &index.today));
            Case { row, ours }
        })
        .collect();
    Cases { cases, tokenizers, index }
}

fn render(
    template: &ChatTemplate,
    tokenizer: &Tokenizer,
    conversation: &Conversation,
    today: &str,
) -> Result<Rendered, String> {
    let messages: Vec<Message> = serde_json::from_value(conversation.messages.clone())
        .map_err(|error| format!("unreadable: {error}"))?;
    let day: Vec<u16> = today.split('-').map(|part| part.parse().expect("a number")).collect();
    let options = RenderOptions {
        add_generation_prompt: conversation.prompt.unwrap_or(true),
        now: Clock::new(day[0], day[1] as u8, day[2] as u8, 0, 0, 0),
        tools: conversation.tools.clone(),
        ..RenderOptions::default()
    };
    template.render_ids(tokenizer, &messages, &options).map_err(|error| error.to_string())
}

/// Runs a check over the rows that it is for, and fails with a list of all that it says.
fn check_all(
    what: &str,
    at_least: usize,
    wanted: impl Fn(&Row) -> bool,
    check: impl Fn(&Tokenizer, &Row, &Result<Rendered, String>) -> Result<(), String>,
) {
    let Cases { cases, tokenizers, index } = cases();
    assert!(index.templates.len() >= 30 && index.conversations.len() >= 11, "too few templates");
    let cases: Vec<Case> = cases.into_iter().filter(|case| wanted(&case.row)).collect();
    assert!(cases.len() >= at_least, "only {} rows", cases.len());
    let failures: Vec<String> = cases
        .iter()
        .filter_map(|Case { row, ours }| {
            let difference = check(&tokenizers[&row.template], row, ours).err()?;
            Some(format!("{}, {}: {difference}", row.template, row.conversation))
        })
        .collect();
    println!("{what}: {} of {} pass", cases.len() - failures.len(), cases.len());
    assert!(
        failures.is_empty(),
        "{what}: {} of {} differ:\n{}",
        failures.len(),
        cases.len(),
        failures.join("\n")
    );
}

fn is_injected(row: &Row) -> bool {
    row.conversation.starts_with("injected")
}

/// The text and the ids, or a refusal where there is one.
fn same_prompt(tokenizer: &Tokenizer, row: &Row, ours: &Result<Rendered, String>) -> Result<(), String> {
    // transformers takes no empty conversation; what its renderer makes of one is here all the same.
    let may_refuse = row.error.is_some() || row.conversation == "nothing";
    match (ours, &row.text) {
        (Err(said), _) if may_refuse => match &row.error {
            Some(error) if row.raised && !said.contains(error) => {
                Err(format!("refused with {said:?} instead of {error:?}"))
            }
            _ => Ok(()),
        },
        (Err(said), _) => Err(format!("refused: {said}")),
        (Ok(ours), None) => Err(format!("{:?} instead of the refusal {:?}", ours.text, row.error)),
        (Ok(ours), Some(text)) => {
            same_text(&ours.text, text)?;
            same_ids(tokenizer, &ours.ids, &row.ids)
        }
    }
}

fn same_text(ours: &str, theirs: &str) -> Result<(), String> {
    if ours == theirs {
        return Ok(());
    }
    let common = ours.chars().zip(theirs.chars()).take_while(|(a, b)| a == b).count();
    let near = |text: &str| -> String { text.chars().skip(common.saturating_sub(20)).take(60).collect() };
    Err(format!("the text at character {common} is {:?} instead of {:?}", near(ours), near(theirs)))
}

fn same_ids(tokenizer: &Tokenizer, ours: &[u32], theirs: &[u32]) -> Result<(), String> {
    if ours == theirs {
        return Ok(());
    }
    let common = ours.iter().zip(theirs).take_while(|(a, b)| a == b).count();
    let near = |ids: &[u32]| -> Vec<String> {
        let near = ids.iter().skip(common.saturating_sub(3)).take(12);
        near.map(|id| tokenizer.token_text(*id).unwrap_or_else(|| format!("#{id}"))).collect()
    };
    Err(format!("the ids at {common} are {:?} instead of {:?}", near(ours), near(theirs)))
}

#[test]
fn prompts_equal_transformers() {
    check_all("prompts", 400, |row| !is_injected(row), same_prompt);
}

/// A special token that somebody types is text: the ids are those of text, the template's own tokens are as in a harmless conversation,
/// and decoding gives back what was typed.
#[test]
fn typed_special_tokens_stay_text() {
    check_all("typed special tokens", 140, is_injected, |tokenizer, row, ours| {
        same_prompt(tokenizer, row, ours)?;
        let Ok(ours) = ours else { return Ok(()) };
        let special: Vec<u32> = ours.ids.iter().copied().filter(|id| tokenizer.is_special(*id)).collect();
        same_ids(tokenizer, &special, row.control.as_ref().expect("the control tokens"))?;
        let decoded = row.decoded.as_ref().or(row.text.as_ref()).expect("a text");
        same_text(&tokenizer.decode(&ours.ids, false), decoded).map_err(|error| format!("decoded, {error}"))
    });
}

/// The spans of a rendering are the contents of the messages, wherever the template put them, without what it rewrote.
#[test]
fn contents_are_located() {
    check_all(
        "contents",
        400,
        |row| row.text.is_some(),
        |_, row, ours| {
            let Ok(ours) = ours else { return Ok(()) };
            let mut found: Vec<(usize, usize, usize)> = Vec::new();
            // A content of which nothing is left has no place to compare.
            for span in ours.spans.iter().filter(|span| !span.text.is_empty()) {
                match found.last_mut() {
                    Some(last) if last.0 == span.message && last.2 == span.text.start => {
                        last.2 = span.text.end
                    }
                    _ => found.push((span.message, span.text.start, span.text.end)),
                }
            }
            if found == row.ranges { Ok(()) } else { Err(format!("{found:?} instead of {:?}", row.ranges)) }
        },
    );
}
