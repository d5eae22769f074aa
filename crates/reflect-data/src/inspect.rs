//! What a sample teaches, to look at: its spans by role, each with the weight it has in the loss.

use std::fmt::Write;

use crate::html::{escape, page};
use crate::import::Record;
use crate::sample::{Span, SpanKind};

const RESET: &str = "\x1b[0m";
const DIM: &str = "\x1b[2m";
const BOLD: &str = "\x1b[1m";

/// The colours of the roles, and how much of them a weight leaves.
const STYLE: &str = "\
.answer,.prompt{white-space:pre-wrap;overflow-wrap:anywhere;border-left:3px solid var(--line);padding-left:.8rem}\
.prompt{color:var(--soft)}\
.span{border-bottom:2px solid color-mix(in srgb,var(--c) calc(var(--w)*100%),transparent);\
background:color-mix(in srgb,var(--c) calc(var(--w)*22%),transparent)}\
.span.off{border-bottom:2px dotted var(--c);opacity:.75}\
.span sub{color:var(--c);font-size:.7rem;user-select:none}\
.thinking{--c:#7a8794}.mistake{--c:#d0382b}.corrective_reflection{--c:#a445c4}\
.confirming_reflection{--c:#2c7fb8}.correction{--c:#2a9147}.output{--c:#b8860b}";

/// A record for a terminal: the prompt, then each span under a line with its role and weight.
/// `weights` has one entry per span; a missing one is shown as `?`. Without `color` the text holds
/// no escape sequence; control characters of the data are never passed on.
pub fn terminal(record: &Record, weights: &[f32], color: bool) -> String {
    let paint =
        |style: &str, text: &str| if color { format!("{style}{text}{RESET}") } else { text.to_owned() };
    let mut out = String::new();
    out.push_str(&paint(BOLD, &visible(&headline(record))));
    out.push('\n');
    for message in &record.problem.messages {
        push_block(&mut out, &paint(DIM, &visible(&message.role)), &visible(&message.content), |line| {
            paint(DIM, line)
        });
    }
    for (index, span) in record.spans.iter().enumerate() {
        let style = terminal_style(span.kind);
        let label = label(span, weights.get(index).copied());
        push_block(&mut out, &paint(style, &label), &visible(&span.text), |line| paint(style, line));
    }
    if record.spans.is_empty() {
        let steps: Vec<&str> = record.problem.steps.iter().map(|step| step.text.as_str()).collect();
        push_block(&mut out, &paint(DIM, "steps, no answer yet"), &visible(&steps.join("\n")), str::to_owned);
    }
    out
}

/// Records as a page of its own, readable in light and in dark; a reader sees the weight as the
/// strength of the colour and as a number. Each record comes with its weights as in [`terminal`].
pub fn html(title: &str, records: &[(Record, Vec<f32>)]) -> String {
    let mut body = String::from("<p>");
    for kind in SpanKind::ALL {
        // Writing into a string can't fail.
        let _ = write!(body, "<span class=\"span {kind}\" style=\"--w:1\">{}</span> ", words(kind));
    }
    body.push_str("<small>small figures are loss weights; dotted spans have none</small></p>\n");
    for (record, weights) in records {
        let _ = writeln!(body, "<h2>{}</h2>", escape(&headline(record)));
        for message in &record.problem.messages {
            let (role, content) = (escape(&message.role), escape(&message.content));
            let _ = writeln!(body, "<small>{role}</small><div class=\"prompt\">{content}</div>");
        }
        body.push_str("<small>answer</small><div class=\"answer\">");
        for (index, span) in record.spans.iter().enumerate() {
            push_span(&mut body, span, weights.get(index).copied());
        }
        body.push_str("</div>\n");
    }
    page(title, STYLE, &body)
}

fn push_span(body: &mut String, span: &Span, weight: Option<f32>) {
    let off = if weight == Some(0.0) { " off" } else { "" };
    let strength = weight.unwrap_or(1.0).clamp(0.0, 1.0);
    let number = weight.map_or_else(|| "?".to_owned(), |weight| weight.to_string());
    // The figure stays on the last line of its span.
    let (text, layout) = span.text.split_at(span.text.trim_end().len());
    let _ = write!(
        body,
        "<span class=\"span {}{off}\" style=\"--w:{strength}\" title=\"{}\">{}<sub>{number}</sub></span>{layout}",
        span.kind,
        escape(&label(span, weight)),
        escape(text),
    );
}

fn headline(record: &Record) -> String {
    let problem = &record.problem;
    format!("{} · {:?} · {:?}", problem.id, problem.difficulty, problem.split)
}

fn words(kind: SpanKind) -> String {
    kind.name().replace('_', " ")
}

fn label(span: &Span, weight: Option<f32>) -> String {
    let weight = weight.map_or_else(|| "?".to_owned(), |weight| weight.to_string());
    let mut label = format!("{} ×{weight}", words(span.kind));
    if let Some(step) = span.step {
        let _ = write!(label, " · step {}", step + 1);
    }
    if let Some(mistake) = span.mistake {
        let _ = write!(label, " · {mistake:?}");
    }
    label
}

fn push_block(out: &mut String, label: &str, text: &str, paint: impl Fn(&str) -> String) {
    out.push_str(label);
    out.push('\n');
    for line in text.trim_matches('\n').split('\n') {
        let _ = writeln!(out, "  │ {}", paint(line));
    }
}

fn terminal_style(kind: SpanKind) -> &'static str {
    match kind {
        SpanKind::Thinking => "\x1b[39m",
        SpanKind::Mistake => "\x1b[31m",
        SpanKind::CorrectiveReflection => "\x1b[35m",
        SpanKind::ConfirmingReflection => "\x1b[36m",
        SpanKind::Correction => "\x1b[32m",
        SpanKind::Output => "\x1b[33m",
    }
}

/// Data must not steer the terminal: what is no line break or tab is shown as a replacement.
fn visible(text: &str) -> String {
    let shown = |character: char| match character {
        '\n' | '\t' => character,
        _ if character.is_control() => '\u{fffd}',
        _ => character,
    };
    text.chars().map(shown).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::import::import;
    use crate::sample::MistakeKind;

    fn record() -> Record {
        let line = r#"{"prompt": "2 + 2 <b>\u001b[31m?", "response": "<thinking>2 + 2 = 5\n<reflection>No.</reflection>\n2 + 2 = 4\n</thinking><output>4</output>"}"#;
        let mut record = import(line.as_bytes(), "x.jsonl", None).unwrap().0.remove(0);
        record.spans[1].mistake = Some(MistakeKind::Slip);
        record.spans[1].step = Some(0);
        record
    }

    #[test]
    fn plain_text_has_roles_weights_and_no_escapes() {
        let record = record();
        assert_eq!(record.spans[1].kind, SpanKind::Mistake);
        let text = terminal(&record, &[1.0, 0.0], false);
        assert!(!text.contains('\x1b'));
        assert!(
            text.contains("thinking ×1\n") && text.contains("mistake ×0 · step 1 · Slip\n  │ 2 + 2 = 5\n")
        );
        assert!(text.contains("corrective reflection ×?"));
    }

    #[test]
    fn colour_is_all_that_escapes_do() {
        let text = terminal(&record(), &[], true);
        assert!(text.contains("\x1b[31m"));
        let mut stripped = text;
        for style in SpanKind::ALL.map(terminal_style).into_iter().chain([RESET, DIM, BOLD]) {
            stripped = stripped.replace(style, "");
        }
        assert_eq!(stripped, terminal(&record(), &[], false));
    }

    #[test]
    fn the_page_escapes_data_and_stands_alone() {
        let page = html("Data", &[(record(), vec![1.0, 0.0, 0.5, 1.0, 1.0, 2.0])]);
        assert!(page.contains("2 + 2 &lt;b&gt;") && page.contains("class=\"span mistake off\""));
        assert!(page.contains("--w:0.5") && page.contains("<sub>2</sub>"));
        assert!(page.contains("prefers-color-scheme:dark"));
        for foreign in ["http", "<script", "src=", "url("] {
            assert!(!page.contains(foreign), "{foreign}");
        }
    }
}
