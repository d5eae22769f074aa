//! Whether the place that a text has reached is quoted: in a code fence, in inline code or in
//! quotation marks. Fences follow CommonMark, except that a closing fence may be followed by a tag.

/// The quoting state of one segment, one character at a time.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Quotes {
    fence: Option<Fence>,
    /// The row of fence characters at the start of the line that is still growing.
    row: Option<Fence>,
    /// Whether anything but white space stands on the line.
    in_line: bool,
    /// Whether the line is the one that opened the fence.
    on_opening_line: bool,
    /// The mark that will close the open quotation.
    quote: Option<char>,
    /// Whether the previous character opened the quotation.
    just_opened: bool,
    previous: Option<char>,
}

#[derive(Clone, Copy, Debug)]
struct Fence {
    mark: char,
    length: usize,
}

impl Quotes {
    /// Whether a tag that begins here is quoted. The closing tag of the innermost segment is hidden
    /// only by a fence or by an opening mark right before it.
    pub(super) fn hide_tag(&self, closes_innermost: bool) -> bool {
        let here = self.before_tag();
        let quoted = here.quote.is_some() && (here.just_opened || !closes_innermost);
        here.fence.is_some() || quoted
    }

    /// Whether a fence is open.
    pub(super) fn is_fenced(&self) -> bool {
        self.fence.is_some()
    }

    /// Whether a fence or a quotation is open.
    pub(super) fn is_open(&self) -> bool {
        self.fence.is_some() || self.quote.is_some()
    }

    /// The state in front of a tag, where a row of fence characters has ended.
    pub(super) fn before_tag(mut self) -> Self {
        self.end_row('<');
        self
    }

    /// Moves past one character of text.
    pub(super) fn see(&mut self, character: char) {
        if let Some(row) = self.row.as_mut().filter(|row| row.mark == character) {
            row.length += 1;
            self.previous = Some(character);
            return;
        }
        self.end_row(character);
        let starts_row = !self.in_line && matches!(character, '`' | '~');
        if starts_row {
            self.row = Some(Fence { mark: character, length: 1 });
            self.in_line = true;
        } else if character == '\n' {
            *self = Self { fence: self.fence, previous: Some('\n'), ..Self::default() };
            return;
        } else if self.fence.is_some() {
            // What follows an opening row of backticks holds no backtick: else it is inline code.
            if self.on_opening_line && character == '`' {
                self.fence = None;
            }
        } else {
            self.see_inline(character);
        }
        self.in_line |= !character.is_whitespace();
        self.previous = Some(character);
    }

    /// Decides what the row of fence characters was, now that `next` follows it.
    fn end_row(&mut self, next: char) {
        let Some(row) = self.row.take() else { return };
        match self.fence {
            Some(fence) => {
                let long_enough = row.mark == fence.mark && row.length >= fence.length;
                if long_enough && (next.is_whitespace() || next == '<') {
                    self.fence = None;
                }
            }
            None if row.length >= 3 => {
                self.fence = Some(row);
                self.on_opening_line = row.mark == '`';
            }
            None if row.mark == '`' => self.open_quote('`'),
            None => {}
        }
    }

    fn see_inline(&mut self, character: char) {
        let just_opened = std::mem::take(&mut self.just_opened);
        match self.quote {
            // The second backtick of an opening pair.
            Some('`') if just_opened && character == '`' => self.just_opened = true,
            Some(mark) => {
                let was_no_opening = just_opened && character.is_whitespace() && mark != '`';
                if character == mark || was_no_opening || mark == '\'' || mark == '’' {
                    self.quote = None;
                }
            }
            None => match character {
                '`' if self.previous != Some('`') => self.open_quote('`'),
                '"' | '\'' if self.may_open() => self.open_quote(character),
                '“' => self.open_quote('”'),
                '‘' => self.open_quote('’'),
                _ => {}
            },
        }
    }

    fn may_open(&self) -> bool {
        self.previous.is_none_or(|c| c.is_whitespace() || "([{=:,".contains(c))
    }

    fn open_quote(&mut self, closing: char) {
        self.quote = Some(closing);
        self.just_opened = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hidden_after(text: &str, closes_innermost: bool) -> bool {
        let mut quotes = Quotes::default();
        text.chars().for_each(|character| quotes.see(character));
        quotes.hide_tag(closes_innermost)
    }

    #[test]
    fn quoted_places() {
        for text in [
            "```\n",
            "```",
            "a\n```rust\nx",
            "  ~~~\n`",
            "````\n```\n",
            "```\n```python\n",
            "`",
            "``",
            "say `",
            "say ``",
            "`the ",
            "\"",
            "the \"",
            "(\"the ",
            "“a ",
            "'",
            "the ‘",
        ] {
            assert!(hidden_after(text, false), "{text:?}");
        }
    }

    #[test]
    fn open_places() {
        for text in [
            "",
            "a",
            "```\n```\n",
            "```\nx\n```",
            "```a``` ",
            "`a`",
            "`a` b",
            "``a`` b",
            "`a\n",
            "\"a\"",
            "5\" ",
            "don't ",
            "don'",
            "\"a\n",
            " \" a",
            "“a”",
            "'a ",
            "~",
            "a ``` b\n",
        ] {
            assert!(!hidden_after(text, false), "{text:?}");
        }
    }

    #[test]
    fn a_forgotten_quote_does_not_hide_the_innermost_closing_tag() {
        assert!(!hidden_after("the \"word", true));
        assert!(hidden_after("the \"", true));
        assert!(hidden_after("```\n", true));
    }
}
