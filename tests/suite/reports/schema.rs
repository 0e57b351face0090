//! As much of JSON Schema as the schemas here use: type, enum, minimum, required, properties, additionalProperties,
//! items and oneOf.

use serde_json::Value;

/// Where `value` breaks `schema`, if it does: the path and the rule.
pub fn fault(schema: &Value, value: &Value, path: &str) -> Option<String> {
    let broken = |rule: &str| Some(format!("{path}: {rule} of {value:.200}"));
    if let Some(kind) = schema["type"].as_str()
        && !is_a(value, kind)
    {
        return broken(kind);
    }
    if let Some(allowed) = schema["enum"].as_array()
        && !allowed.contains(value)
    {
        return broken("enum");
    }
    if let Some(minimum) = schema["minimum"].as_f64()
        && value.as_f64().is_none_or(|number| number < minimum)
    {
        return broken("minimum");
    }
    for name in schema["required"].as_array().into_iter().flatten() {
        if value.get(name.as_str().unwrap()).is_none() {
            return broken(&format!("required {name}"));
        }
    }
    let none = Value::Null;
    for (name, member) in value.as_object().into_iter().flatten() {
        let named = schema["properties"].get(name).or(schema.get("additionalProperties"));
        let fault = fault(named.unwrap_or(&none), member, &format!("{path}/{name}"));
        if fault.is_some() {
            return fault;
        }
    }
    if let Some(items) = schema.get("items") {
        let elements = value.as_array().into_iter().flatten().enumerate();
        let mut faults = elements.filter_map(|(i, v)| fault(items, v, &format!("{path}/{i}")));
        if let Some(fault) = faults.next() {
            return Some(fault);
        }
    }
    let choices = schema["oneOf"].as_array()?;
    let faults: Vec<String> = choices.iter().filter_map(|c| fault(c, value, path)).collect();
    if faults.len() + 1 == choices.len() { None } else { broken(&format!("oneOf, {faults:?},")) }
}

fn is_a(value: &Value, kind: &str) -> bool {
    match kind {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "number" => value.is_number(),
        "integer" => value.is_u64() || value.is_i64(),
        other => panic!("no type {other:?}"),
    }
}

#[test]
fn broken_events_are_found() {
    let schema: Value = serde_json::from_str(include_str!("trace.schema.json")).unwrap();
    let with = |event: &str| -> Value {
        let text = format!(r#"{{"displayTimeUnit": "ms", "traceEvents": [{event}]}}"#);
        serde_json::from_str(&text).unwrap()
    };
    let whole = r#"{"ph": "X", "name": "a", "cat": "b", "pid": 1, "tid": 1, "ts": 0, "dur": 1.5}"#;
    assert_eq!(fault(&schema, &with(whole), ""), None);
    for (was, is) in [
        ("\"dur\": 1.5", "\"dur\": -1"),
        ("\"dur\": 1.5", "\"duration\": 1"),
        ("\"X\"", "\"B\""),
        ("\"ts\": 0", "\"ts\": \"0\""),
        ("\"pid\": 1", "\"pid\": 0.5"),
        ("\"name\": \"a\", ", ""),
    ] {
        let broken = whole.replace(was, is);
        assert_ne!(broken, whole);
        assert!(fault(&schema, &with(&broken), "").is_some(), "{broken}");
    }
}
