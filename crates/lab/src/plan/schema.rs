//! The JSON schema of a plan, for editors.

use serde_json::{Map, Value, json};

use super::keys::{self, Key, Kind, Table};

/// The schema, draft 2020-12.
pub fn schema() -> Value {
    let mut schema = of_table(&keys::PLAN);
    schema["$schema"] = json!("https://json-schema.org/draft/2020-12/schema");
    schema["title"] = json!("A plan of kiln lab");
    schema
}

fn of_table(table: &Table) -> Value {
    let properties: Map<String, Value> = table.keys.iter().map(|key| (key.name.to_owned(), of_key(key))).collect();
    let required: Vec<_> = table.keys.iter().filter(|key| key.required).map(|key| key.name).collect();
    json!({"type": "object", "properties": properties, "required": required, "additionalProperties": false})
}

fn of_key(key: &Key) -> Value {
    let mut value = of_kind(&key.kind);
    value["description"] = json!(key.about);
    value
}

fn of_kind(kind: &Kind) -> Value {
    match kind {
        Kind::Text => json!({"type": "string", "minLength": 1}),
        Kind::Integer(first, last) => json!({"type": "integer", "minimum": first, "maximum": last}),
        Kind::Boolean => json!({"type": "boolean"}),
        Kind::Duration => json!({"type": "string", "examples": ["90s", "5m"]}),
        Kind::Size => json!({"type": "string", "examples": ["512M", "2G"]}),
        Kind::Date => json!({"type": "string", "format": "date"}),
        Kind::Word(words) => json!({"enum": words}),
        Kind::List(of) => json!({"type": "array", "items": of_kind(of)}),
        Kind::Table(table) => of_table(table),
        Kind::Map(of) => json!({
            "type": "object",
            "propertyNames": {"pattern": "^[A-Za-z_][A-Za-z0-9_]{0,63}$"},
            "additionalProperties": of_kind(of),
        }),
        Kind::Scalar => json!({"type": ["string", "number", "boolean"]}),
    }
}
