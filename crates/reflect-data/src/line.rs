//! The grammar of a step: `work, subject = value, rest`. Only the first part with a relation claims
//! something; what stands around it shows the work or what to carry on. A line may also break off:
//! `subject work operand ?` claims that its subject waits for that operand.

/// What a line claims.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Claim<'a> {
    pub(crate) subject: &'a str,
    pub(crate) value: &'a str,
}

const RELATIONS: [&str; 2] = ["=", " is "];

/// How a line ends that breaks off.
const OPEN: &str = " ?";

/// Whether a line breaks off at an operand that nobody knows yet.
pub(crate) fn is_open(line: &str) -> bool {
    line.ends_with(OPEN)
}

/// The claim of a line: in `tens = 4+8=12, put 2` it is that `tens` has the value `12`.
pub(crate) fn claim(line: &str) -> Option<Claim<'_>> {
    if let Some(open) = line.strip_suffix(OPEN) {
        let (subject, value) = (open.split(' ').next()?, open.rsplit(' ').next()?);
        return (open.contains(' ') && !subject.is_empty()).then_some(Claim { subject, value });
    }
    line.split(", ").find_map(|clause| {
        let places = |find: fn(&str, &str) -> Option<usize>| {
            RELATIONS.map(|relation| find(clause, relation).map(|place| (place, relation.len())))
        };
        let first = places(|text, relation| text.find(relation)).into_iter().flatten().min()?;
        let last = places(|text, relation| text.rfind(relation)).into_iter().flatten().max()?;
        let subject = clause.get(..first.0)?.trim();
        let value = clause.get(last.0 + last.1..)?.trim().trim_end_matches('.');
        (!subject.is_empty() && !value.is_empty()).then_some(Claim { subject, value })
    })
}

/// A text with every run of white space as one space and none at its ends: what lines and answers
/// are compared by.
pub(crate) fn normal(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims_of_lines() {
        let cases = [
            ("tens = 4+8=12, put 2 carry 1", Some(("tens", "12"))),
            ("true and false, s1 = false, now not false", Some(("s1", "false"))),
            ("each Dax is a Fep", Some(("each Dax", "a Fep"))),
            ("tens top = 4-1=3", Some(("tens top", "3"))),
            ("a: tens 4 ones 7", None),
            (" = , = ", None),
            ("coins shells 3 + bells ?", Some(("coins", "bells"))),
            ("bells ?", None),
            (" ?", None),
        ];
        for (line, expected) in cases {
            let found = claim(line).map(|claim| (claim.subject, claim.value));
            assert_eq!(found, expected, "{line}");
        }
    }

    #[test]
    fn spaces_are_normalised() {
        assert_eq!(normal("  a \n\t b "), "a b");
    }
}
