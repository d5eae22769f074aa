//! Pages that need nothing but themselves: no script, no font, no picture from elsewhere.

/// What every page shares: readable in light and in dark.
const STYLE: &str = "\
:root{color-scheme:light dark;--fg:#1d2126;--bg:#fdfdfc;--soft:#6a7178;--line:#d9dcdf}\
@media(prefers-color-scheme:dark){:root{--fg:#dfe3e6;--bg:#15181b;--soft:#98a0a7;--line:#33393f}}\
body{font:15px/1.5 system-ui,sans-serif;color:var(--fg);background:var(--bg);max-width:60rem;margin:2rem auto;padding:0 1rem}\
h1{font-size:1.4rem}h2{font-size:1.1rem;margin-top:2rem}small{color:var(--soft)}\
table{border-collapse:collapse}td,th{padding:.15rem .8rem .15rem 0;text-align:right;border-bottom:1px solid var(--line);font-variant-numeric:tabular-nums}\
td:first-child,th:first-child{text-align:left}svg{max-width:100%;height:auto}";

/// A text with the characters that mean something in HTML written out.
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            _ => escaped.push(character),
        }
    }
    escaped
}

/// A page. `title` is text; `style` and `body` are CSS and HTML.
pub fn page(title: &str, style: &str, body: &str) -> String {
    let title = escape(title);
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n<title>{title}</title>\n\
         <style>{STYLE}{style}</style>\n</head>\n<body>\n<h1>{title}</h1>\n{body}</body>\n</html>\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_cannot_become_markup() {
        assert_eq!(escape("<a href='x'>&\""), "&lt;a href=&#39;x&#39;&gt;&amp;&quot;");
        assert!(page("</title><script>", "", "").contains("<title>&lt;/title&gt;&lt;script&gt;</title>"));
    }
}
