use proptest::prelude::*;

use super::*;

/// Pairs of a line and what CPython 3.11 gives for `json.dumps(json.loads(line))`.
const AS_PYTHON: &[(&str, &str)] = &[
    (r#"{}"#, r#"{}"#),
    (r#"{"a":1}"#, r#"{"a": 1}"#),
    (r#" { "a" : [ 1 , 2.0 , -3 ] , "b" : { } , "c" : [ ] } "#, r#"{"a": [1, 2.0, -3], "b": {}, "c": []}"#),
    (r#"{"a":null,"b":true,"c":false}"#, r#"{"a": null, "b": true, "c": false}"#),
    (r#"{"a":"q\"b\\s\/\b\f\n\r\t\u0000\u001f\u007f"}"#, r#"{"a": "q\"b\\s/\b\f\n\r\t\u0000\u001f\u007f"}"#),
    (
        r#"{"a":"é☃😀","é":"\u00e9\u2603\ud83d\ude00"}"#,
        r#"{"a": "\u00e9\u2603\ud83d\ude00", "\u00e9": "\u00e9\u2603\ud83d\ude00"}"#,
    ),
    (r#"{"a":"\u2028\u2029\ufeff\uffff"}"#, r#"{"a": "\u2028\u2029\ufeff\uffff"}"#),
    (r#"{"a":1,"b":2,"a":3}"#, r#"{"a": 3, "b": 2}"#),
    (r#"{"m":{"x":1,"y":2,"x":{"z":0}}}"#, r#"{"m": {"x": {"z": 0}, "y": 2}}"#),
    (r#"{"a":NaN,"b":Infinity,"c":-Infinity}"#, r#"{"a": NaN, "b": Infinity, "c": -Infinity}"#),
    (
        r#"{"a":12345678901234567890123456789012345678901234567890}"#,
        r#"{"a": 12345678901234567890123456789012345678901234567890}"#,
    ),
    (
        r#"{"a":-9223372036854775809,"b":18446744073709551616}"#,
        r#"{"a": -9223372036854775809, "b": 18446744073709551616}"#,
    ),
    (r#"{"a":-0,"b":0,"c":-0.0,"d":0.0,"e":-0e5}"#, r#"{"a": 0, "b": 0, "c": -0.0, "d": 0.0, "e": -0.0}"#),
    (
        r#"{"a":1E400,"b":-1e400,"c":1e-400,"d":5e-324,"e":1.7976931348623157e308}"#,
        r#"{"a": Infinity, "b": -Infinity, "c": 0.0, "d": 5e-324, "e": 1.7976931348623157e+308}"#,
    ),
    (
        r#"{"a":1.0,"b":100000.0,"c":1e15,"d":1e16,"e":1e17,"f":123456789012345680.0}"#,
        r#"{"a": 1.0, "b": 100000.0, "c": 1000000000000000.0, "d": 1e+16, "e": 1e+17, "f": 1.2345678901234568e+17}"#,
    ),
    (
        r#"{"a":0.1,"b":0.0001,"c":0.00001,"d":1e-5,"e":0.00012345,"f":1.5e-7}"#,
        r#"{"a": 0.1, "b": 0.0001, "c": 1e-05, "d": 1e-05, "e": 0.00012345, "f": 1.5e-07}"#,
    ),
    (
        r#"{"a":1e22,"b":1e23,"c":9007199254740993.0,"d":2.5e+3,"e":9999999999999998.0,"f":12345678901234567.0}"#,
        r#"{"a": 1e+22, "b": 1e+23, "c": 9007199254740992.0, "d": 2500.0, "e": 9999999999999998.0, "f": 1.2345678901234568e+16}"#,
    ),
    (
        r#"{"a":3.141592653589793238462643,"b":2.2250738585072011e-308,"c":1e100,"d":-1.5E-10}"#,
        r#"{"a": 3.141592653589793, "b": 2.225073858507201e-308, "c": 1e+100, "d": -1.5e-10}"#,
    ),
    (r#"{"":"empty key"," ":[[[[]]]]}"#, r#"{"": "empty key", " ": [[[[]]]]}"#),
    (r#"{"a":[{"b":[{"c":{"d":[1,[2,[3]]]}}]}]}"#, r#"{"a": [{"b": [{"c": {"d": [1, [2, [3]]]}}]}]}"#),
    (r#"{"a":"\ud83d\ude00\ud83c\udf0d tail"}"#, r#"{"a": "\ud83d\ude00\ud83c\udf0d tail"}"#),
];

#[test]
fn what_python_reads_is_written_as_python_writes_it() {
    for (line, written) in AS_PYTHON {
        let record = parse_record(line).unwrap_or_else(|error| panic!("{line}: {error}")).record;
        assert_eq!(record.to_python_json(), *written, "{line}");
    }
}

#[test]
fn floats_change_to_exponents_where_repr_does() {
    for (value, written) in [
        (1e-5, "1e-05"),
        (0.0001, "0.0001"),
        (0.00011, "0.00011"),
        (123456789.125, "123456789.125"),
        (9999999999999998.0, "9999999999999998.0"),
        (1e16, "1e+16"),
        (-1.5e300, "-1.5e+300"),
        // ...517.25: of two as near, Python takes the even digit.
        (-5706901542850069.0 / 4.0, "-1426725385712517.2"),
        (f64::MIN_POSITIVE, "2.2250738585072014e-308"),
        (-0.0, "-0.0"),
        (f64::NAN, "NaN"),
        (f64::NEG_INFINITY, "-Infinity"),
    ] {
        assert_eq!(number::of_f64(value), written);
    }
}

#[test]
fn what_is_wrong_is_told_with_its_column() {
    let deep = format!("{{\"a\":{}1{}}}", "[".repeat(256), "]".repeat(256));
    let long = format!("{{\"é\": -{}}}", "7".repeat(4301));
    for (line, column, message) in [
        ("[1, 2]", 1, "expected an object {...}, found an array"),
        ("  \"text\"", 3, "expected an object {...}, found a string"),
        ("NaN", 1, "expected an object {...}, found a number"),
        ("hello", 1, "expected an object {...}, found 'h'"),
        ("{\"a\": 1", 8, "expected ',' or '}', but the line ends here"),
        ("{\"a\": 1]", 8, "expected ',' or '}', found ']'"),
        ("{\"a\": [1 2]}", 10, "expected ',' or ']', found '2'"),
        ("{\"a\": [1,]}", 10, "expected a value, found ']'"),
        ("{\"a\": 1,}", 9, "expected a key in double quotes, found '}'"),
        ("{'a': 1}", 2, "expected a key in double quotes, found '\\''"),
        ("{\"a\" 1}", 6, "expected ':' after the key, found '1'"),
        ("{\"é☃😀\" 1}", 8, "expected ':' after the key, found '1'"),
        ("{\"a\": nul}", 7, "expected a value, found 'n'"),
        ("{\"a\": -}", 8, "expected a digit, found '}'"),
        ("{\"a\": 01}", 8, "expected ',' or '}', found '1'"),
        ("{\"a\": 1.}", 8, "expected ',' or '}', found '.'"),
        ("{\"a\": .5}", 7, "expected a value, found '.'"),
        ("{\"a\": 1e}", 8, "expected ',' or '}', found 'e'"),
        ("{\"a\": \"open}", 7, "this string has no closing quote"),
        ("{\"a\": \"tab\there\"}", 11, "a raw control character in a string; write it as \\u0009"),
        ("{\"a\": \"\\x41\"}", 8, "not an escape JSON knows (a backslash itself is \\\\)"),
        ("{\"a\": \"\\u12g4\"}", 8, "\\u needs four hexadecimal digits after it"),
        ("{\"a\": \"\\u+123\"}", 8, "\\u needs four hexadecimal digits after it"),
        ("{\"a\": \"\\u12é\"}", 8, "\\u needs four hexadecimal digits after it"),
        ("{\"a\": \"\\u12", 8, "\\u needs four hexadecimal digits after it"),
        ("{\"a\": \"x\\ud83d y\"}", 9, "\\ud83d is half a surrogate pair, which is no text"),
        ("{\"a\": \"\\ude00\\ud83d\"}", 8, "\\ude00 is half a surrogate pair, which is no text"),
        ("{\"a\": \"\\ud83d\\u0041\"}", 8, "\\ud83d is half a surrogate pair, which is no text"),
        ("{\"a\": 1} {\"b\": 2}", 10, "one object a line, but '{' follows it"),
        ("{\"a\": 1}\u{a0}", 9, "one object a line, but '\\u{a0}' follows it"),
        (&deep, 261, "nested deeper than 256 levels"),
        (&long, 7, "an integer of 4301 digits; Python reads 4300 at most"),
    ] {
        let error = parse_record(line).expect_err(line);
        assert_eq!((error.column, error.message.as_str()), (column, message), "{line}");
    }
}

#[test]
fn a_place_is_found_again_by_its_key() {
    let line = "{\"é\": 1, \"text\":   2, \"é\": 3}";
    let parsed = parse_record(line).unwrap();
    assert_eq!(parsed.column_of("text", line), 20);
    assert_eq!(parsed.column_of("é", line), 28, "the last one counts");
    assert_eq!(parsed.column_of("none", line), 1);
}

#[test]
fn keys_keep_their_places_as_in_a_dict() {
    let mut record = Record::parse(r#"{"b": 1, "a": 2, "c": 3}"#).unwrap();
    record.insert("a", "new");
    record.insert("d", 4usize);
    assert_eq!(record.remove("b"), Some(Json::from(1usize)));
    assert_eq!(record.remove("b"), None);
    assert_eq!(record.to_python_json(), r#"{"a": "new", "c": 3, "d": 4}"#);
}

#[test]
fn many_keys_are_told_apart_as_a_few_are() {
    let mut line: String = (0..500).map(|at| format!("\"{}\": {at}, ", at % 100)).collect();
    line.truncate(line.len() - 2);
    let record = Record::parse(&format!("{{{line}}}")).unwrap();
    assert_eq!(record.len(), 100);
    assert_eq!(record.iter().next(), Some(("0", &Json::from(400usize))));
    assert_eq!(record.get("99"), Some(&Json::from(499usize)));
}

#[test]
fn a_record_goes_through_a_message_unchanged() {
    let record = Record::parse(r#"{"text": "é\"", "n": 123456789012345678901234567890, "x": NaN}"#).unwrap();
    let message = serde_json::to_string(&record).unwrap();
    assert_eq!(serde_json::from_str::<Record>(&message).unwrap(), record);
    let error = serde_json::from_str::<Record>(r#""{\"a\" 1}""#).unwrap_err().to_string();
    assert!(error.starts_with("a prompt's record: column 6: expected ':' after the key"), "{error}");
}

/// Any JSON value serde_json can hold.
fn any_json() -> impl Strategy<Value = serde_json::Value> {
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<i64>().prop_map(Into::into),
        any::<u64>().prop_map(Into::into),
        // Floats that serde_json reads exactly; it may be one digit off for others.
        any::<i32>().prop_map(|eighths| (f64::from(eighths) / 8.0).into()),
        any::<String>().prop_map(Into::into),
    ];
    leaf.prop_recursive(4, 40, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Into::into),
            prop::collection::vec((any::<String>(), inner), 0..6)
                .prop_map(|fields| serde_json::Value::Object(fields.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn any_object_reads_back_from_what_is_written(fields in prop::collection::vec((any::<String>(), any_json()), 0..30)) {
        let value: serde_json::Map<_, _> = fields.into_iter().collect();
        let record = Record::from(value.clone());
        for written in [record.to_python_json(), record.to_compact_utf8()] {
            prop_assert_eq!(&parse_record(&written).unwrap().record, &record);
            let read: serde_json::Map<_, _> = serde_json::from_str(&written).unwrap();
            prop_assert_eq!(&read, &value, "serde_json reads it as we do");
            prop_assert!(read.keys().eq(value.keys()));
        }
        prop_assert!(record.to_python_json().is_ascii());
        let dense = parse_record(&serde_json::to_string(&value).unwrap()).unwrap().record;
        prop_assert_eq!(dense, record);
    }

    #[test]
    fn no_text_makes_the_reader_panic(line in any::<String>(), cut in 0usize..60) {
        let _ = parse_record(&line);
        let whole = r#"{"text": "a\ud83d\ude00é\n", "meta": {"x": [1.5e-7, -2, null, true]}, "n": NaN}"#;
        let end = (0..=cut.min(whole.len())).rev().find(|&end| whole.is_char_boundary(end)).unwrap();
        let _ = parse_record(&whole[..end]);
        let _ = parse_record(&[&whole[..end], &line].concat());
    }
}
