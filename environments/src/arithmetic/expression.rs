//! Reads and evaluates an arithmetic expression exactly.
//!
//! ```text
//! sum     = product { ("+" | "-") product }
//! product = factor { ("*" | "/") factor }
//! factor  = digits | "(" sum ")"
//! ```
//! Values are fractions n/d in lowest terms with d > 0. Text, nesting and digits are bounded, so any
//! text whatever is read in little time and stack; what breaks a bound, divides by zero or overflows
//! is no expression. There is no unary minus: the numbers of a task are positive.

/// Longest text read, in characters.
const MAX_CHARS: usize = 256;
/// Deepest nesting of parentheses.
const MAX_DEPTH: usize = 16;
/// Longest number, in digits, leading zeros included.
const MAX_DIGITS: usize = 9;

/// Value of an expression and the numbers written in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Evaluated {
    /// Exact value.
    pub(crate) value: Fraction,
    /// Numbers in the order written.
    pub(crate) numbers: Vec<i64>,
}

/// n/d in lowest terms, d > 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fraction {
    numerator: i128,
    denominator: i128,
}

impl Fraction {
    /// The fraction of an integer.
    pub(crate) fn integer(value: i64) -> Fraction {
        Fraction {
            numerator: i128::from(value),
            denominator: 1,
        }
    }

    /// n/d reduced; `None` for d = 0 or where a sign change overflows.
    fn reduced(numerator: i128, denominator: i128) -> Option<Fraction> {
        let (mut a, mut b) = (numerator.checked_abs()?, denominator.checked_abs()?);
        while b != 0 {
            (a, b) = (b, a % b);
        }
        let divisor = if denominator < 0 { -a } else { a };
        (denominator != 0).then(|| Fraction {
            numerator: numerator / divisor,
            denominator: denominator / divisor,
        })
    }

    /// `self operator other`; `None` on overflow or division by zero.
    fn apply(self, operator: char, other: Fraction) -> Option<Fraction> {
        let (a, b) = (self.numerator, self.denominator);
        let (c, d) = (other.numerator, other.denominator);
        match operator {
            '+' => Fraction::reduced(
                a.checked_mul(d)?.checked_add(c.checked_mul(b)?)?,
                b.checked_mul(d)?,
            ),
            '-' => Fraction::reduced(
                a.checked_mul(d)?.checked_sub(c.checked_mul(b)?)?,
                b.checked_mul(d)?,
            ),
            '*' => Fraction::reduced(a.checked_mul(c)?, b.checked_mul(d)?),
            _ => Fraction::reduced(a.checked_mul(d)?, b.checked_mul(c)?),
        }
    }
}

/// Value of `text`, or `None` where it is no expression or breaks a bound.
pub(crate) fn evaluate(text: &str) -> Option<Evaluated> {
    // Counting stops at the bound, however long the text is.
    let text: Vec<char> = text.chars().take(MAX_CHARS + 1).collect();
    if text.len() > MAX_CHARS {
        return None;
    }
    let mut parser = Parser {
        text,
        position: 0,
        numbers: Vec::new(),
    };
    let value = parser.sum(0)?;
    parser.peek().is_none().then_some(Evaluated {
        value,
        numbers: parser.numbers,
    })
}

struct Parser {
    text: Vec<char>,
    position: usize,
    numbers: Vec<i64>,
}

impl Parser {
    /// The next character that is no space, not consumed.
    fn peek(&mut self) -> Option<char> {
        while self.text.get(self.position) == Some(&' ') {
            self.position += 1;
        }
        self.text.get(self.position).copied()
    }

    fn sum(&mut self, depth: usize) -> Option<Fraction> {
        let mut value = self.product(depth)?;
        while let Some(operator @ ('+' | '-')) = self.peek() {
            self.position += 1;
            value = value.apply(operator, self.product(depth)?)?;
        }
        Some(value)
    }

    fn product(&mut self, depth: usize) -> Option<Fraction> {
        let mut value = self.factor(depth)?;
        while let Some(operator @ ('*' | '/')) = self.peek() {
            self.position += 1;
            value = value.apply(operator, self.factor(depth)?)?;
        }
        Some(value)
    }

    fn factor(&mut self, depth: usize) -> Option<Fraction> {
        match self.peek()? {
            '(' if depth < MAX_DEPTH => {
                self.position += 1;
                let value = self.sum(depth + 1)?;
                (self.peek()? == ')').then_some(())?;
                self.position += 1;
                Some(value)
            }
            '0'..='9' => self.number(),
            _ => None,
        }
    }

    fn number(&mut self) -> Option<Fraction> {
        let rest = &self.text[self.position..];
        let digits: String = rest.iter().take_while(|c| c.is_ascii_digit()).collect();
        if digits.len() > MAX_DIGITS {
            return None;
        }
        self.position += digits.len();
        let number = digits.parse().ok()?;
        self.numbers.push(number);
        Some(Fraction::integer(number))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(text: &str) -> Option<(i128, i128)> {
        evaluate(text).map(|e| (e.value.numerator, e.value.denominator))
    }

    #[test]
    fn products_bind_tighter_and_both_run_left_to_right() {
        assert_eq!(value("2 + 3 * 4"), Some((14, 1)));
        assert_eq!(value("(2 + 3) * 4"), Some((20, 1)));
        assert_eq!(value("10 - 4 - 3"), Some((3, 1)));
        assert_eq!(value("100 / 5 / 2"), Some((10, 1)));
        assert_eq!(value("1-2"), Some((-1, 1)));
        assert_eq!(value(" ((7)) "), Some((7, 1)));
    }

    #[test]
    fn fractions_are_exact() {
        assert_eq!(value("8 / (3 - 8 / 3)"), Some((24, 1)));
        assert_eq!(value("1 / 3 + 1 / 6"), Some((1, 2)));
        assert_eq!(value("1 / (2 - 4)"), Some((-1, 2)));
        assert_eq!(value("0 / 5"), Some((0, 1)));
    }

    #[test]
    fn the_numbers_written_are_listed() {
        let evaluated = evaluate("(3 + 5) * 03").expect("an expression");
        assert_eq!(evaluated.numbers, [3, 5, 3]);
    }

    #[test]
    fn malformed_text_is_no_expression() {
        for text in [
            "", " ", "+", "3 +", "* 3", "-3", "3 4", "3 + + 4", "()", "(3", "3)", ")3(", "3.5",
            "2 ** 3", "2 // 3", "3 = 3", "1,000", "x", "3\n+ 4", "٣", "1/0", "1/(2-2)", "0/0",
        ] {
            assert_eq!(value(text), None, "{text:?}");
        }
    }

    #[test]
    fn bounds_hold() {
        let nested = |depth| format!("{}1{}", "(".repeat(depth), ")".repeat(depth));
        assert_eq!(value(&nested(MAX_DEPTH)), Some((1, 1)));
        assert_eq!(value(&nested(MAX_DEPTH + 1)), None);
        assert_eq!(value(&"(".repeat(1_000_000)), None);
        assert_eq!(value("999999999"), Some((999_999_999, 1)));
        assert_eq!(value("1000000000"), None);
        assert_eq!(value(&"1".repeat(1_000_000)), None);
        assert_eq!(value(&format!("1{}", "+1".repeat(127))), Some((128, 1)));
        assert_eq!(value(&format!("1{}", "+1".repeat(128))), None);
        // 999999999^5 is above 2^127.
        assert_eq!(value(&["999999999"; 5].join("*")), None);
        assert_eq!(value(&format!("1/{}", ["999999999"; 5].join("/"))), None);
    }
}
