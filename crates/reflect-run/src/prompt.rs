//! From messages to prompt tokens.

use std::io::{IsTerminal, Read};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Result;
use reflect_text::{ChatTemplate, Date, Message, RenderOptions, Tokenizer, presets};

use crate::input;

/// The ids of a conversation, ending where the assistant's answer begins.
///
/// # Errors
/// If there is no template, or it refuses the conversation.
pub fn render(
    template: Option<&ChatTemplate>,
    tokenizer: &Tokenizer,
    messages: &[Message],
) -> Result<Vec<u32>> {
    let template = template.ok_or_else(|| {
        input("this checkpoint has no chat template; use `reflect-run run --raw` to continue a text")
    })?;
    let today = today();
    let options = RenderOptions {
        add_generation_prompt: true,
        date_string: today.map(|today| today.format("%d %b %Y")),
        today,
        ..RenderOptions::default()
    };
    Ok(template.render_ids(tokenizer, messages, &options)?.ids)
}

/// The system message that an argument names or is.
pub fn system_message(argument: &str) -> Message {
    Message::new("system", presets::system_prompt(argument).unwrap_or(argument))
}

/// The prompt of the command line, or from standard input.
///
/// # Errors
/// If it cannot be read or is empty.
pub fn read(argument: Option<&str>) -> Result<String> {
    let text = match argument {
        Some(text) if text != "-" => text.to_owned(),
        _ => {
            let mut stdin = std::io::stdin();
            if stdin.is_terminal() {
                eprintln!("Type the prompt, then Ctrl-D on a line of its own:");
            }
            let mut bytes = Vec::new();
            stdin.read_to_end(&mut bytes)?;
            let mut text = String::from_utf8(bytes)
                .map_err(|_| input("the prompt on standard input is not UTF-8; convert it first"))?;
            if text.ends_with('\n') {
                text.pop();
            }
            text
        }
    };
    if text.is_empty() {
        return Err(input("the prompt is empty; write it after `run`, or pipe it in"));
    }
    Ok(text)
}

/// Refuses a prompt that leaves no room for an answer.
///
/// # Errors
/// One sentence with both lengths.
pub fn check_length(tokens: usize, context: usize) -> Result<()> {
    if tokens < context {
        return Ok(());
    }
    Err(input(format!(
        "the prompt has {tokens} tokens, which leaves no room for an answer in a context of {context}; shorten it, or raise --context as far as the model allows"
    )))
}

/// Today's date (UTC), or `None` where the clock makes no sense.
fn today() -> Option<Date> {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).ok()?.as_secs();
    let (year, month, day) = civil_from_days(seconds / 86_400);
    Date::new(u16::try_from(year).ok()?, month, day)
}

/// Year, month and day of a number of days since 1 January 1970, by counting from 1 March of year
/// 0, so that a leap day is the last of its year (Hinnant, "chrono-Compatible Low-Level Date
/// Algorithms").
fn civil_from_days(days: u64) -> (u64, u8, u8) {
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    (year, month as u8, day as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expected days from Python's `datetime.date.toordinal`.
    #[test]
    fn days_become_dates() {
        let cases = [
            (0, (1970, 1, 1)),
            (59, (1970, 3, 1)),
            (11_016, (2000, 2, 29)),
            (11_017, (2000, 3, 1)),
            (20_779, (2026, 11, 22)),
            (47_540, (2100, 2, 28)),
            (47_541, (2100, 3, 1)),
        ];
        for (days, date) in cases {
            assert_eq!(civil_from_days(days), date, "{days}");
        }
    }
}
