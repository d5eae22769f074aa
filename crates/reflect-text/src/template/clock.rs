//! The time that a template may ask for, in the formats of C's `strftime`.

use std::fmt::Write;

use chrono::{NaiveDate, NaiveDateTime};

/// A moment of local time, for templates that ask for the date.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clock(NaiveDateTime);

/// The conversions of `strftime` that chrono writes as C does.
const CONVERSIONS: &str = "YCyGgmbBhdeaAwuUWVjDxFvHkIlPpMSRTXrcs";

impl Clock {
    /// A day of the Gregorian calendar and a time of it; `None` where there is no such moment.
    pub fn new(year: u16, month: u8, day: u8, hour: u8, minute: u8, second: u8) -> Option<Self> {
        let date = NaiveDate::from_ymd_opt(year.into(), month.into(), day.into())?;
        date.and_hms_opt(hour.into(), minute.into(), second.into()).map(Self)
    }

    /// The moment in the format of glibc's `strftime`, as Python's `datetime.strftime` gives it for a
    /// time without a zone. What is no conversion stays as it is.
    pub fn format(self, format: &str) -> String {
        let mut text = String::new();
        let mut rest = format;
        while let Some(at) = rest.find('%') {
            text.push_str(&rest[..at]);
            let conversion = &rest[at + 1..];
            let flags = conversion.len() - conversion.trim_start_matches(['-', '_', '0', '^', '#']).len();
            let (flags, name) = conversion.split_at(flags);
            let Some(kind) = name.chars().next() else {
                text.push_str(&rest[at..]);
                return text;
            };
            rest = &name[kind.len_utf8()..];
            match self.converted(flags, kind) {
                Some(written) => text.push_str(&written),
                None => text.extend(["%", flags, &name[..kind.len_utf8()]]),
            }
        }
        text + rest
    }

    fn converted(self, flags: &str, kind: char) -> Option<String> {
        let plain = match kind {
            '%' => "%".to_owned(),
            'n' => "\n".to_owned(),
            't' => "\t".to_owned(),
            'z' | 'Z' => String::new(),
            'f' => "000000".to_owned(),
            kind if CONVERSIONS.contains(kind) => self.written(&format!("%{kind}"))?,
            _ => return None,
        };
        let number = plain.trim_start_matches(['0', ' ']);
        let is_number = plain.chars().all(|c| c.is_ascii_digit() || c == ' ');
        Some(flags.chars().fold(plain.clone(), |written, flag| match flag {
            '-' if is_number && number.is_empty() => "0".to_owned(),
            '-' if is_number => number.to_owned(),
            '_' if is_number => format!("{number:>width$}", width = plain.len()),
            '0' if is_number => format!("{number:0>width$}", width = plain.len()),
            '^' => written.to_uppercase(),
            '#' if kind == 'p' => written.to_lowercase(),
            '#' => written.to_uppercase(),
            _ => written,
        }))
    }

    fn written(self, format: &str) -> Option<String> {
        let mut text = String::new();
        write!(text, "{}", self.0.format(format)).ok().map(|()| text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values of Python 3's `datetime(2024, 7, 6, 15, 4, 9).strftime(format)` on Linux.
    #[test]
    fn formats() {
        let now = Clock::new(2024, 7, 6, 15, 4, 9).unwrap();
        let cases = [
            ("%d %b %Y", "06 Jul 2024"),
            ("%A, %B %d, %y %m %a %H:%M:%S %% %Q", "Saturday, July 06, 24 07 Sat 15:04:09 % %Q"),
            ("%-d/%-m/%-y %-H", "6/7/24 15"),
            ("%e|%_m|%k|%l|%I %p|%P", " 6| 7|15| 3|03 PM|pm"),
            ("%j %U %W %V %u %w %G %g %C", "188 26 27 27 6 6 2024 24 20"),
            ("%F %T %D %R %r", "2024-07-06 15:04:09 07/06/24 15:04 03:04:09 PM"),
            ("%c|%x|%X", "Sat Jul  6 15:04:09 2024|07/06/24|15:04:09"),
            ("%^a %^B %#p", "SAT JULY pm"),
            ("[%Z][%z] %f %n%t", "[][] 000000 \n\t"),
            ("100%", "100%"),
            ("%é %", "%é %"),
        ];
        for (format, expected) in cases {
            assert_eq!(now.format(format), expected, "{format}");
        }
        assert!(Clock::new(2023, 2, 29, 0, 0, 0).is_none() && Clock::new(2024, 2, 29, 23, 59, 59).is_some());
        assert!(Clock::new(2024, 1, 1, 24, 0, 0).is_none());
    }
}
