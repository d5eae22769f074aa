use proptest::prelude::*;

use super::*;

fn span(kind: SpanKind, text: &str) -> Span {
    Span { kind, text: text.to_owned(), step: None, mistake: None }
}

/// A corrected answer, cut into spans.
fn spans() -> Vec<Span> {
    vec![
        span(SpanKind::Thinking, "<thinking>\n"),
        span(SpanKind::Mistake, "2+2=5\n"),
        span(SpanKind::CorrectiveReflection, "<reflection>4</reflection>\n"),
        span(SpanKind::Correction, "2+2=4\n"),
        span(SpanKind::Thinking, "</thinking>\n"),
        span(SpanKind::Output, "<output>4</output>"),
    ]
}

const HEAD: &str = "<|start_header_id|>assistant<|end_header_id|>\n\n";

/// The conversation, the place of the answer, and its tokens by their texts.
fn rendered(system: &str, pieces: &[&str]) -> (String, Range<usize>, Vec<Range<usize>>) {
    let answer: String = spans().iter().map(|span| span.text.as_str()).collect();
    assert_eq!(pieces.concat(), answer);
    let before = [system, "2+2?", HEAD];
    let start = before.concat().len();
    let mut tokens = Vec::new();
    let mut text = String::new();
    for piece in before.iter().chain(pieces).chain(&["<|eot_id|>"]) {
        tokens.push(text.len()..text.len() + piece.len());
        text.push_str(piece);
    }
    (text, start..start + answer.len(), tokens)
}

/// Twelve tokens of the answer after three of the prompt; the end of the turn is the last one.
const PIECES: [&str; 12] = [
    "<thinking>",
    "\n",
    "2+2=",
    "5\n",
    "<reflection>",
    "4",
    "</reflection>",
    "\n2",
    "+2=4\n",
    "</thinking>\n",
    "<output>",
    "4</output>",
];

fn weights(strategy: &LossStrategy, system: &str, pieces: &[&str]) -> Vec<Vec<f32>> {
    let (text, answer, tokens) = rendered(system, pieces);
    token_weights(strategy, &text, answer, &spans(), &tokens).unwrap()
}

#[test]
fn roles_become_tokens() {
    let none = weights(&LossStrategy::None, "S", &PIECES);
    assert_eq!(none, [[0., 0., 0., 1., 1., 1., 1., 1., 1., 1., 1., 1., 1., 1., 1., 1.]]);
    let masked = weights(&LossStrategy::MaskMistakes, "S", &PIECES);
    assert_eq!(masked, [[0., 0., 0., 1., 1., 0., 0., 1., 1., 1., 1., 1., 1., 1., 1., 1.]]);
    let own = SpanWeights {
        mistake: 0.25,
        corrective_reflection: 2.0,
        correction: 0.5,
        output: 3.0,
        ..SpanWeights::default()
    };
    // The token `\n2` holds the end of the reflection and the start of the correction.
    let weighed = weights(&LossStrategy::Weights(own), "S", &PIECES);
    assert_eq!(weighed, [[0., 0., 0., 1., 1., 0.25, 0.25, 2., 2., 2., 0.5, 0.5, 1., 3., 3., 3.]]);
}

#[test]
fn tokens_at_the_edge_of_a_mistake_are_masked() {
    let pieces = [
        "<thinking>",
        "\n2",
        "+2=5",
        "\n<",
        "reflection>4</reflection>\n2+2=4\n</thinking>\n<output>4</output>",
    ];
    let masked = weights(&LossStrategy::MaskMistakes, "S", &pieces);
    assert_eq!(masked, [[0., 0., 0., 1., 0., 0., 0., 1., 1.]]);
}

#[test]
fn the_intended_collator_masks_up_to_the_first_reflection() {
    for system in ["S", "Use <reflection> tags."] {
        let copies = weights(&LossStrategy::Intended, system, &PIECES);
        let expected = [
            [0., 0., 0., 0., 0., 0., 0., 0., 1., 1., 1., 1., 1., 1., 1., 1.],
            [0., 0., 0., 1., 1., 1., 1., 1., 1., 1., 1., 1., 1., 1., 1., 1.],
        ];
        assert_eq!(copies, expected, "{system}");
    }
}

#[test]
fn the_published_collator_finds_the_tag_of_the_system_prompt() {
    let answer_only = weights(&LossStrategy::Published, "S", &PIECES);
    assert_eq!(answer_only, weights(&LossStrategy::Intended, "S", &PIECES));
    let copies = weights(&LossStrategy::Published, "Use <reflection> tags.", &PIECES);
    // The system prompt is one token, which holds the tag; copy A learns all the rest.
    let expected = [
        [0., 1., 1., 1., 1., 1., 1., 1., 1., 1., 1., 1., 1., 1., 1., 1.],
        [0., 0., 0., 1., 1., 1., 1., 1., 1., 1., 1., 1., 1., 1., 1., 1.],
    ];
    assert_eq!(copies, expected);
}

#[test]
fn the_published_collator_learns_later_turns() {
    let text = format!("U{HEAD}AU{HEAD}B");
    let first = 1 + HEAD.len();
    let (second, end) = (first + 2 + HEAD.len(), text.len());
    let tokens = [0..1, 1..first, first..first + 1, first + 1..first + 2, first + 2..second, second..end];
    let spans = [span(SpanKind::Output, "B")];
    let weights =
        |strategy: &LossStrategy| token_weights(strategy, &text, second..end, &spans, &tokens).unwrap();
    assert_eq!(weights(&LossStrategy::Published), [[0., 0., 1., 1., 1., 1.]]);
    assert_eq!(weights(&LossStrategy::Intended), [[0., 0., 0., 0., 0., 1.]]);
}

#[test]
fn spans_are_shown_with_their_weights() {
    let named = [Message::new("system", "Check inside <reflection> tags.")];
    assert_eq!(span_weights(&LossStrategy::Published, &named, &spans()), [1.; 6]);
    assert_eq!(span_weights(&LossStrategy::Published, &[], &spans()), [0.5, 0.5, 1., 1., 1., 1.]);
    assert_eq!(span_weights(&LossStrategy::MaskMistakes, &[], &spans()), [1., 0., 1., 1., 1., 1.]);
    assert_eq!(span_weights(&LossStrategy::Intended, &named, &spans()), [0.5, 0.5, 1., 1., 1., 1.]);
    assert_eq!(span_weights(&LossStrategy::Published, &[], &[span(SpanKind::Output, "x")]), [1.]);
}

#[test]
fn places_that_do_not_fit_are_refused() {
    let (text, answer, tokens) = rendered("S", &PIECES);
    let length = text.len();
    let weights = |answer: Range<usize>, spans: &[Span], tokens: &[Range<usize>]| {
        token_weights(&LossStrategy::None, &text, answer, spans, tokens).unwrap_err()
    };
    let range = 3..length + 1;
    assert_eq!(
        weights(range.clone(), &spans(), &tokens),
        LossError::AnswerRange { range: range.clone(), length }
    );
    assert!(matches!(weights(answer.clone(), &spans()[1..], &tokens), LossError::Spans { .. }));
    let expected = LossError::TokenRange { token: 0, range: range.clone(), length };
    assert_eq!(weights(answer, &spans(), &[range]), expected);
}

#[test]
fn names_are_parsed() {
    for strategy in LossStrategy::ALL {
        assert_eq!(strategy.name().parse(), Ok(strategy));
    }
    let weights = SpanWeights { mistake: 0.0, output: 3.0, ..SpanWeights::default() };
    assert_eq!("mistake=0,output=3".parse(), Ok(LossStrategy::Weights(weights)));
    for wrong in ["other", "weights", "", "mistake", "mistake=-1", "mistake=nan", "slip=1", "mistake=0,"] {
        let error = wrong.parse::<LossStrategy>().unwrap_err().to_string();
        assert!(error.contains("mask-mistakes") && error.contains("corrective_reflection"), "{error}");
    }
}

proptest! {
    /// However the text is cut, no token that holds a byte of a mistake is learned, and every other
    /// token of the answer is.
    #[test]
    fn any_cut_masks_mistakes_and_nothing_else(cuts in proptest::collection::vec(0..140usize, 0..60)) {
        let (text, answer, _) = rendered("S", &PIECES);
        let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(text.len())).chain([0, text.len()]).collect();
        cuts.sort_unstable();
        cuts.dedup();
        let tokens: Vec<Range<usize>> = cuts.windows(2).map(|pair| pair[0]..pair[1]).collect();
        let found = token_weights(&LossStrategy::MaskMistakes, &text, answer.clone(), &spans(), &tokens).unwrap();
        let start = answer.start + "<thinking>\n".len();
        let mistake = start..start + "2+2=5\n".len();
        for (index, (token, weight)) in tokens.iter().zip(&found[0]).enumerate() {
            let touches = token.start < mistake.end && mistake.start < token.end;
            let inside = token.start >= answer.start && token.end <= answer.end;
            let ends_turn = token.start >= answer.end && tokens[..index].iter().all(|t| t.start < answer.end);
            let expected = index > 0 && ((inside && !touches) || ends_turn);
            prop_assert_eq!(*weight, f32::from(u8::from(expected)), "{:?}", &text[token.clone()]);
        }
    }
}
