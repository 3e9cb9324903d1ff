//! Texts written by CPython 3.11, `json.dumps(json.loads(text), ensure_ascii=False)`.

use super::*;

fn again(text: &str) -> String {
    Json::parse(text).unwrap().to_string()
}

fn problem(text: &str) -> String {
    Json::parse(text).unwrap_err().to_string()
}

#[test]
fn numbers_are_written_as_python_writes_them() {
    for (text, expected) in [
        (
            "[1.0, 2e0, -0.0, 1e16, 1e15, 123456789012345680.0, 1e-4, 1e-5, 0.1]",
            "[1.0, 2.0, -0.0, 1e+16, 1000000000000000.0, 1.2345678901234568e+17, 0.0001, 1e-05, 0.1]",
        ),
        (
            "[1.5e300, 5e-324, 1.7976931348623157e308, 1E400, -1e400, NaN]",
            "[1.5e+300, 5e-324, 1.7976931348623157e+308, Infinity, -Infinity, NaN]",
        ),
        (
            "[12345678901234567890123, -0, 0, -7, 0.30000000000000004, 9007199254740993.0]",
            "[12345678901234567890123, 0, 0, -7, 0.30000000000000004, 9007199254740992.0]",
        ),
        (
            "[2.5E-7, 1.0E+22, 100.0, 1e22, 1e21]",
            "[2.5e-07, 1e+22, 100.0, 1e+22, 1e+21]",
        ),
    ] {
        assert_eq!(again(text), expected);
    }
}

#[test]
fn strings_are_escaped_as_python_escapes_them() {
    assert_eq!(
        again(r#""a\"b\\c\/d\b\f\n\r\t\u0000\u001f\u007f\u00e9\u2028\ud83d\ude00 é 😀""#),
        "\"a\\\"b\\\\c/d\\b\\f\\n\\r\\t\\u0000\\u001f\u{7f}é\u{2028}😀 é 😀\""
    );
}

#[test]
fn keys_keep_their_order_and_the_last_value_of_equal_ones() {
    assert_eq!(
        again(r#"{"x": 1, "y": 2, "x": {"z": null, "w": [true, false, {}, []]}}"#),
        r#"{"x": {"z": null, "w": [true, false, {}, []]}, "y": 2}"#
    );
    assert_eq!(again(" \t\n[ 1 , 2 ]\r\n"), "[1, 2]");
}

#[test]
fn what_is_no_json_is_refused_with_line_and_column() {
    for (text, expected) in [
        ("", "line 1, column 1: expected a value, the text ends"),
        (
            "{\n  'a': 1}",
            "line 2, column 3: expected a key in double quotes, found '\\''",
        ),
        ("{\"é\" 1}", "line 1, column 6: expected ':', found '1'"),
        (
            "[1, 2",
            "line 1, column 6: expected ',' or ']', the text ends",
        ),
        ("[1, ]", "line 1, column 5: expected a value, found ']'"),
        (
            "{\"a\": 1,}",
            "line 1, column 9: expected a key in double quotes, found '}'",
        ),
        ("1 2", "line 1, column 3: expected nothing more, found '2'"),
        ("01", "line 1, column 2: expected nothing more, found '1'"),
        ("1.", "line 1, column 2: expected nothing more, found '.'"),
        ("-x", "line 1, column 2: expected a digit, found 'x'"),
        ("None", "line 1, column 1: expected a value, found 'N'"),
        (
            "\"ab",
            "line 1, column 1: a string without its closing '\"'",
        ),
        (
            "\"a\nb\"",
            "line 1, column 3: a control character in a string: write it as \\u000a",
        ),
        (
            "\"\\x\"",
            "line 1, column 2: a backslash that starts no escape; write it twice",
        ),
        (
            "\"\\u12é\"",
            "line 1, column 2: \\u needs four hexadecimal digits",
        ),
        (
            "\"\\ud800\"",
            "line 1, column 2: \\ud800 is half a surrogate pair, no character",
        ),
        (
            "\"\\ud800\\u0041\"",
            "line 1, column 2: \\ud800 is half a surrogate pair, no character",
        ),
        (
            "\u{feff}1",
            "line 1, column 1: a byte order mark; save the text as plain UTF-8",
        ),
    ] {
        assert_eq!(problem(text), expected, "{text}");
    }
    let deep = "[".repeat(1000) + &"]".repeat(1000);
    assert_eq!(
        problem(&deep),
        "line 1, column 130: nested more than 128 deep"
    );
}

#[test]
fn indented_text_is_that_of_python() {
    let value = Json::parse(r#"{"a": [1, {"b": "é\n"}, [], {}], "c": {}, "d": [[1], 2.0]}"#);
    let expected = "{\n  \"a\": [\n    1,\n    {\n      \"b\": \"é\\n\"\n    },\n    [],\n    {}\n  ],\n  \
                    \"c\": {},\n  \"d\": [\n    [\n      1\n    ],\n    2.0\n  ]\n}";
    assert_eq!(value.unwrap().indented(2), expected);
}
