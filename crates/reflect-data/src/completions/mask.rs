//! Takes a key out of a text, in whatever spelling a server gave it back.

/// What stands for a key.
const MASK: &str = "[key]";
/// Shorter keys are no secrets, and would be found in any text.
const SHORTEST: usize = 4;
const BASE64: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// The spellings of a key, the longest first.
pub struct Mask {
    spellings: Vec<String>,
}

impl Mask {
    /// A mask of nothing where there is no key.
    pub fn new(key: Option<&str>) -> Self {
        let Some(key) = key.map(str::trim).filter(|key| key.len() >= SHORTEST) else {
            return Self { spellings: Vec::new() };
        };
        let each = |spell: &dyn Fn(char) -> String| key.chars().map(spell).collect::<String>();
        let percent = |plain: &dyn Fn(char) -> bool, upper: bool| {
            each(&|c| match plain(c) {
                true => c.to_string(),
                false => {
                    bytes_of(c, |byte| if upper { format!("%{byte:02X}") } else { format!("%{byte:02x}") })
                }
            })
        };
        let unreserved = |c: char| c.is_ascii_alphanumeric() || "-_.~".contains(c);
        let json = serde_json::to_string(key).unwrap_or_default();
        let json = json.get(1..json.len().saturating_sub(1)).unwrap_or_default();
        let units = |upper: bool| {
            let unit = |unit: u16| if upper { format!("\\u{unit:04X}") } else { format!("\\u{unit:04x}") };
            key.encode_utf16().map(unit).collect::<String>()
        };
        let html = |c: char| match c {
            '&' => "&amp;".to_owned(),
            '<' => "&lt;".to_owned(),
            '>' => "&gt;".to_owned(),
            '"' => "&quot;".to_owned(),
            '\'' => "&#39;".to_owned(),
            c => c.to_string(),
        };
        let numbered = |c: char| match c {
            '+' | '=' | '/' => format!("&#{};", u32::from(c)),
            c => html(c),
        };
        let mut spellings = vec![
            key.to_owned(),
            json.to_owned(),
            json.replace('/', "\\/"),
            json.replace('\\', "\\\\"),
            units(false),
            units(true),
            percent(&unreserved, true),
            percent(&unreserved, false),
            percent(&|c| c.is_ascii_alphanumeric(), true),
            percent(&|c| c.is_ascii_alphanumeric(), false),
            percent(&|_| false, true),
            percent(&|_| false, false),
            each(&html),
            each(&numbered),
            each(&|c| format!("&#{};", u32::from(c))),
            each(&|c| format!("&#x{:x};", u32::from(c))),
            each(&|c| bytes_of(c, |byte| format!("{byte:02x}"))),
            each(&|c| bytes_of(c, |byte| format!("{byte:02X}"))),
        ];
        for shift in 0..3 {
            let inside = base64_inside(key.as_bytes(), shift);
            spellings.push(inside.replace('+', "-").replace('/', "_"));
            spellings.push(inside.replace('+', "%2B").replace('/', "%2F"));
            spellings.push(inside);
        }
        spellings.retain(|spelling| spelling.len() >= SHORTEST);
        spellings.sort_unstable_by(|a, b| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
        spellings.dedup();
        Self { spellings }
    }

    /// The text without the key.
    pub fn apply(&self, text: &str) -> String {
        let replace = |text: String, key: &String| match text.contains(key.as_str()) {
            true => text.replace(key.as_str(), MASK),
            false => text,
        };
        self.spellings.iter().fold(text.to_owned(), replace)
    }
}

/// An address without the credentials and the query that it may hold.
pub fn plain_address(url: &str) -> String {
    let url = url.split(['?', '#']).next().unwrap_or_default();
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let end = rest.find('/').unwrap_or(rest.len());
    let (host, path) = rest.split_at(end);
    let host = host.rsplit('@').next().unwrap_or_default();
    format!("{scheme}://{host}{path}")
}

fn bytes_of(c: char, spell: impl Fn(u8) -> String) -> String {
    c.encode_utf8(&mut [0; 4]).bytes().map(spell).collect()
}

/// The characters of base64 that a key alone decides where it stands `shift` bytes into a group of three,
/// whatever stands around it.
fn base64_inside(key: &[u8], shift: usize) -> String {
    let padded: Vec<u8> = std::iter::repeat_n(0, shift).chain(key.iter().copied()).collect();
    let sextet = |at: usize| {
        let byte = |place: usize| u32::from(padded.get(place).copied().unwrap_or(0));
        let group = at / 4 * 3;
        let bits = byte(group) << 16 | byte(group + 1) << 8 | byte(group + 2);
        char::from(BASE64[(bits >> (18 - 6 * (at % 4)) & 63) as usize])
    };
    let first = (8 * shift).div_ceil(6);
    let end = 8 * padded.len() / 6;
    (first..end).map(sextet).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn keys_are_masked_in_every_spelling() {
        let mask = Mask::new(Some("sk-a/b+c\"=d"));
        for told in [
            "Bad key sk-a/b+c\"=d.",
            r#"{"key": "sk-a/b+c\"=d"}"#,
            r#"{"key": "sk-a\/b+c\"=d"}"#,
            "?key=sk-a%2Fb%2Bc%22%3Dd&x",
            "?key=sk-a%2fb%2bc%22%3dd&x",
            "<p>sk-a/b+c&quot;=d</p>",
            // base64 of the key, of `Bearer ` with it, and of `x:` with it, as Python's base64 gives them.
            "c2stYS9iK2MiPWQ=",
            "QmVhcmVyIHNrLWEvYitjIj1k",
            "eDpzay1hL2IrYyI9ZA==",
            "736b2d612f622b63223d64",
        ] {
            let masked = mask.apply(told);
            assert!(masked.contains(MASK), "{told}: {masked}");
        }
        assert_eq!(mask.apply("nothing"), "nothing");
        assert_eq!(Mask::new(Some("x")).apply("xx"), "xx");
        assert_eq!(Mask::new(None).apply("a"), "a");
    }

    #[test]
    fn addresses_lose_their_credentials() {
        let cases = [
            ("http://host:8000/v1", "http://host:8000/v1"),
            ("https://me:secret@host/v1", "https://host/v1"),
            ("https://host/v1?key=secret", "https://host/v1"),
            ("https://a@b@host", "https://host"),
            ("host", "host"),
        ];
        for (url, plain) in cases {
            assert_eq!(plain_address(url), plain);
        }
    }

    proptest! {
        #[test]
        fn base64_holds_the_key_at_any_place(before in ".{0,9}", key in "[!-~]{8,40}", after in ".{0,9}") {
            let text = [before.as_str(), &key, &after].concat();
            let encoded: String = {
                let groups = text.as_bytes().chunks(3);
                groups.flat_map(|group| base64_inside(group, 0).chars().collect::<Vec<_>>()).collect()
            };
            // Whole groups are the encoding; a short last one lacks its last character only.
            prop_assert_ne!(Mask::new(Some(&key)).apply(&encoded), encoded);
        }
    }
}
