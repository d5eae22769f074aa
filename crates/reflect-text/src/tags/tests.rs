use proptest::prelude::*;

use super::*;

/// Feeds a text in pieces, one token each, and ends it.
fn parse(pieces: &[&str]) -> Vec<TagEvent> {
    let mut parser = TagParser::new();
    let mut events = Vec::new();
    for (index, piece) in pieces.iter().enumerate() {
        events.extend(parser.feed(index, index as u32, piece));
    }
    events.extend(parser.finish(Closed::Eos));
    events
}

/// Events as short strings, neighbouring text joined, without anything that depends on the pieces.
fn outline(events: &[TagEvent]) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    let mut last_text = None;
    for event in events {
        match event {
            TagEvent::Start { id, parent, kind, .. } => {
                let parent = parent.map_or(String::new(), |parent| format!(" in {parent}"));
                lines.push(format!("{id} {kind:?}{parent}"));
            }
            TagEvent::Text { id, text, .. } if last_text == Some(*id) => {
                lines.last_mut().unwrap().push_str(text);
            }
            TagEvent::Text { id, text, .. } => lines.push(format!("{id}: {text}")),
            TagEvent::End { id, closed, .. } => lines.push(format!("{id} {closed:?}")),
        }
        last_text = if let TagEvent::Text { id, .. } = event { Some(*id) } else { None };
    }
    lines
}

/// The input, put together again from the events.
fn rebuild(events: &[TagEvent]) -> String {
    let mut kinds = Vec::new();
    let mut text = String::new();
    for event in events {
        match event {
            TagEvent::Start { kind, .. } => {
                kinds.push(*kind);
                text.push_str(Tag { kind: *kind, opens: true }.spelling());
            }
            TagEvent::Text { text: piece, .. } => text.push_str(piece),
            TagEvent::End { id, closed: Closed::Tag, .. } => {
                text.push_str(Tag { kind: kinds[*id as usize], opens: false }.spelling());
            }
            TagEvent::End { .. } => {}
        }
    }
    text
}

#[test]
fn nested_segments() {
    let text = "<thinking>2+2=5\n<reflection>No: 4.</reflection> So 4.</thinking>\n<output>4</output>";
    let events = parse(&[text]);
    assert_eq!(
        outline(&events),
        [
            "0 Thinking",
            "0: 2+2=5\n",
            "1 Reflection in 0",
            "1: No: 4.",
            "1 Tag",
            "0:  So 4.",
            "0 Tag",
            "2 Text",
            "2: \n",
            "2 Tag",
            "3 Output",
            "3: 4",
            "3 Tag",
        ]
    );
    assert_eq!(rebuild(&events), text);
}

#[test]
fn plain_text_is_one_segment() {
    assert_eq!(outline(&parse(&["a < b", " and <b>"])), ["0 Text", "0: a < b and <b>", "0 Eos"]);
    assert_eq!(outline(&parse(&[])), Vec::<String>::new());
}

#[test]
fn tags_in_the_wrong_place() {
    let cases: [(&str, &[&str]); 7] = [
        ("</output>a", &["0 Text", "0: </output>a", "0 Eos"]),
        ("<thinking>a<thinking>b</thinking>", &["0 Thinking", "0: a<thinking>b", "0 Tag"]),
        ("<thinking>a<output>b</output>", &["0 Thinking", "0: a", "0 Forced", "1 Output", "1: b", "1 Tag"]),
        (
            "<thinking>a<reflection>b</thinking>c",
            &[
                "0 Thinking",
                "0: a",
                "1 Reflection in 0",
                "1: b",
                "1 Forced",
                "0 Tag",
                "2 Text",
                "2: c",
                "2 Eos",
            ],
        ),
        ("<output>a<thinking>b", &["0 Output", "0: a", "0 Forced", "1 Thinking", "1: b", "1 Eos"]),
        ("a<reflection>b</reflection>", &["0 Text", "0: a", "0 Tag", "1 Reflection", "1: b", "1 Tag"]),
        ("<thinking></output></thinking", &["0 Thinking", "0: </output></thinking", "0 Eos"]),
    ];
    for (text, expected) in cases {
        let events = parse(&[text]);
        assert_eq!(outline(&events), expected, "{text:?}");
        assert_eq!(rebuild(&events), text);
    }
}

#[test]
fn a_fence_that_is_never_closed_hides_no_answer() {
    let thinking = |text: &str| format!("0: {text}");
    let cases = [
        ("Try:\n```py\nx = 1\n", "</thinking>\n<output>ok</output>"),
        ("Try:\n~~~\n<thinking>", "</thinking>x</thinking>\n\n  <output>ok</output>"),
        ("A `", "</thinking>\n<output>ok</output>"),
    ];
    for (before, after) in cases {
        let text = format!("<thinking>{before}{after}");
        let events = parse(&[&text]);
        let lines = outline(&events);
        assert_eq!(
            lines[lines.len() - 3..],
            ["2 Output", "2: ok", "2 Tag"].map(|line| {
                let last = events.iter().filter(|event| matches!(event, TagEvent::Start { .. })).count() - 1;
                line.replacen('2', &last.to_string(), 1)
            }),
            "{text:?}: {lines:?}"
        );
        assert_eq!(rebuild(&events), text);
        assert!(lines[1].starts_with(&thinking(before)), "{lines:?}");
    }
    // Without another tag behind it the end of the answer decides.
    let lines = outline(&parse(&["<thinking>```\nx\n</thinking>\n4."]));
    assert_eq!(lines, ["0 Thinking", "0: ```\nx\n", "0 Tag", "1 Text", "1: \n4.", "1 Eos"]);
    let lines = outline(&parse(&["<thinking>```\nx\n<output>4"]));
    assert_eq!(lines, ["0 Thinking", "0: ```\nx\n", "0 Forced", "1 Output", "1: 4", "1 Eos"]);
    // A fence that is closed has quoted all of it.
    let quoted = "```\n<output>1</output>\n<thinking></thinking></thinking>\n```\n";
    let lines = outline(&parse(&[&format!("<thinking>{quoted}</thinking>")]));
    assert_eq!(lines, ["0 Thinking".to_owned(), thinking(quoted), "0 Tag".to_owned()]);
    let lines = outline(&parse(&["<thinking>The tag `</thinking>` ends it.</thinking>"]));
    assert_eq!(lines, ["0 Thinking", "0: The tag `</thinking>` ends it.", "0 Tag"]);
}

#[test]
fn a_prompt_may_have_opened_a_segment() {
    let mut parser = TagParser::new();
    parser.begin_in(&TagParser::opened_by("assistant\n<thinking>\n"));
    let mut events = parser.feed(0, 7, "Hm.");
    events.extend(parser.feed(1, 8, "</thinking><output>4"));
    events.extend(parser.finish(Closed::Eos));
    assert_eq!(outline(&events), ["0 Thinking", "0: Hm.", "0 Tag", "1 Output", "1: 4", "1 Eos"]);
    assert_eq!(TagParser::opened_by("<thinking>done</thinking> and `<output>`"), []);
}

#[test]
fn quoted_tags_stay_text() {
    for quoted in [
        "\"<output>\"",
        "`</thinking>`",
        "\n```\n<output>\n</thinking>\n```\n",
        "say 'x' or \"the <output> tag\"",
    ] {
        let text = format!("<thinking>{quoted}.</thinking>");
        assert_eq!(outline(&parse(&[&text])), ["0 Thinking", &format!("0: {quoted}."), "0 Tag"]);
    }
    let text = "<thinking>It says \"yes\"</thinking><output>6' 2\"</output>";
    assert_eq!(outline(&parse(&[text]))[2..], ["0 Tag", "1 Output", "1: 6' 2\"", "1 Tag"]);
}

#[test]
fn special_tags_are_never_quoted() {
    let mut parser = TagParser::new();
    let open = Tag::parse("<thinking>").unwrap();
    let close = Tag::parse("</thinking>").unwrap();
    let mut events = parser.feed_special(0, 90, open);
    events.extend(parser.feed(1, 7, "```\n<out"));
    events.extend(parser.feed_special(2, 91, close));
    events.extend(parser.feed_special(3, 91, close));
    events.extend(parser.finish(Closed::Eos));
    assert_eq!(
        outline(&events),
        ["0 Thinking", "0: ```\n<out", "0 Tag", "1 Text", "1: </thinking>", "1 Eos"]
    );
    assert!(events.contains(&TagEvent::Text { id: 1, text: "</thinking>".into(), token_ids: vec![91] }));
}

#[test]
fn tokens_are_accounted_for() {
    let mut parser = TagParser::new();
    let mut events = Vec::new();
    // Tags of several tokens; token 3 ends a tag and begins the text, token 5 is half a character.
    for (index, text) in
        ["Hm", "<thin", "king", ">a", "b", "", "é</", "thinking>", "<", "x"].iter().enumerate()
    {
        events.extend(parser.feed(index, 100 + index as u32, text));
        if index == 6 {
            assert_eq!(parser.current(), SegmentKind::Thinking);
            assert_eq!(parser.tokens_in(SegmentKind::Thinking), 6);
        }
    }
    events.extend(parser.finish(Closed::Eos));
    let text = |id, text: &str, token_ids: &[u32]| TagEvent::Text {
        id,
        text: text.into(),
        token_ids: token_ids.into(),
    };
    assert_eq!(
        events,
        [
            TagEvent::Start { id: 0, parent: None, kind: SegmentKind::Text, token: 0 },
            text(0, "Hm", &[100]),
            TagEvent::End { id: 0, token: 1, closed: Closed::Tag },
            TagEvent::Start { id: 1, parent: None, kind: SegmentKind::Thinking, token: 1 },
            text(1, "a", &[103]),
            text(1, "b", &[104]),
            text(1, "é", &[105, 106]),
            TagEvent::End { id: 1, token: 8, closed: Closed::Tag },
            TagEvent::Start { id: 2, parent: None, kind: SegmentKind::Text, token: 8 },
            text(2, "<x", &[108, 109]),
            TagEvent::End { id: 2, token: 10, closed: Closed::Eos },
        ]
    );
}

#[test]
fn a_forced_close_is_reported_and_the_outer_segment_goes_on() {
    let mut parser = TagParser::new();
    parser.feed(0, 0, "<thinking>a<reflection>b<refl");
    assert_eq!(parser.reflections(), 1);
    let events = parser.force_close();
    assert_eq!(outline(&events), ["1: <refl", "1 Forced"]);
    assert_eq!(outline(&parser.feed(1, 1, "c")), ["0: c"]);
    parser.force_close();
    assert!(parser.force_close().is_empty());
    assert_eq!(parser.current(), SegmentKind::Text);
}

/// Texts made of everything the parser looks at.
fn tricky_text() -> impl Strategy<Value = String> {
    let pieces = prop::sample::select(vec![
        "<thinking>",
        "</thinking>",
        "<output>",
        "</output>",
        "<reflection>",
        "</reflection>",
        "<",
        "</",
        "<thin",
        "ing>",
        "<<",
        "\n",
        "\n```\n",
        "```",
        "`",
        "~~~",
        "\"",
        "'",
        "“",
        "”",
        " ",
        "a",
        "é",
        "日🙂",
        "5\" ",
    ]);
    prop::collection::vec(pieces, 0..24).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn events_do_not_depend_on_the_chunks(text in tricky_text(), cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12)) {
        let whole = parse(&[&text]);
        prop_assert_eq!(rebuild(&whole), text.clone());

        let mut places: Vec<usize> = cuts.iter().map(|cut| cut.index(text.len() + 1)).filter(|place| text.is_char_boundary(*place)).collect();
        places.extend([0, text.len()]);
        places.sort_unstable();
        let pieces: Vec<&str> = places.windows(2).map(|pair| &text[pair[0]..pair[1]]).collect();
        let cut = parse(&pieces);
        prop_assert_eq!(outline(&cut), outline(&whole));

        // Every token is reported at most once, in order, and positions never go back by more than
        // the token that two segments share.
        let ids: Vec<u32> = cut.iter().flat_map(|event| match event {
            TagEvent::Text { token_ids, .. } => token_ids.clone(),
            _ => vec![],
        }).collect();
        prop_assert!(ids.windows(2).all(|pair| pair[0] < pair[1]));
        let characters: Vec<String> = text.chars().map(String::from).collect();
        let characters: Vec<&str> = characters.iter().map(String::as_str).collect();
        let single = parse(&characters);
        prop_assert_eq!(outline(&single), outline(&whole));
        let places: Vec<usize> = single.iter().filter_map(|event| match event {
            TagEvent::Start { token, .. } | TagEvent::End { token, .. } => Some(*token),
            TagEvent::Text { .. } => None,
        }).collect();
        prop_assert!(places.is_sorted());
    }

    #[test]
    fn only_a_possible_tag_is_held_back(text in tricky_text()) {
        let mut parser = TagParser::new();
        let mut events = Vec::new();
        for (index, (at, character)) in text.char_indices().enumerate() {
            events.extend(parser.feed(index, 0, character.encode_utf8(&mut [0; 4])));
            let seen = &text[..at + character.len_utf8()];
            // In an open quotation what follows a tag in doubt is held back with it.
            let doubted = parser.doubt.as_ref().map(|doubt| {
                let rest: String = doubt.rest.iter().map(|(.., text)| text.as_str()).collect();
                doubt.tag.spelling().to_owned() + &rest
            });
            prop_assert_eq!(rebuild(&events) + &doubted.unwrap_or_default() + &parser.held, seen);
            prop_assert!(parser.held.is_empty() || TAGS.iter().any(|(tag, _)| tag.starts_with(&parser.held)));
        }
    }
}
