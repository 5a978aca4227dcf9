//! [`Path`]: the place of a value in JSON, and the strings of JSON that is cut off or malformed.

use serde_json::{Map, Value};

/// The names that lead to a value, from the outside in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Path(Vec<String>);

impl Path {
    /// Parses `a.b.0` and the JSON Pointer `/a/b/0` (RFC 6901).
    pub(crate) fn parse(path: &str) -> Self {
        Self(match path.strip_prefix('/') {
            Some(pointer) => pointer.split('/').map(|name| name.replace("~1", "/").replace("~0", "~")).collect(),
            None => path.split('.').map(str::to_owned).collect(),
        })
    }

    pub(crate) fn sibling(&self, name: &str) -> Self {
        let mut names = self.0.clone();
        names.pop();
        names.push(name.to_owned());
        Self(names)
    }

    /// Removes and returns the value, so that no secret stays behind among the members that are kept. An object that
    /// becomes empty is removed too.
    pub(crate) fn take(&self, value: &mut Value) -> Option<Value> {
        fn take(names: &[String], value: &mut Value) -> Option<Value> {
            let (name, rest) = names.split_first()?;
            match value {
                Value::Object(members) if rest.is_empty() => members.remove(name),
                Value::Object(members) => {
                    let inner = members.get_mut(name)?;
                    let taken = take(rest, inner);
                    if taken.is_some() && inner.as_object().is_some_and(Map::is_empty) {
                        members.remove(name);
                    }
                    taken
                }
                Value::Array(items) => {
                    let item = items.get_mut(name.parse::<usize>().ok()?)?;
                    if rest.is_empty() { Some(item.take()) } else { take(rest, item) }
                }
                _ => None,
            }
        }
        take(&self.0, value)
    }

    /// Sets the value, creating the objects that lead to it. Returns `false` if something else is in the way.
    #[must_use]
    pub(crate) fn set(&self, value: Value, members: &mut Map<String, Value>) -> bool {
        let Some((last, leading)) = self.0.split_last() else { return false };
        let mut object = members;
        for name in leading {
            let inner = object.entry(name).or_insert_with(|| Value::Object(Map::new()));
            let Value::Object(inner) = inner else { return false };
            object = inner;
        }
        object.insert(last.clone(), value);
        true
    }

    fn leads_to(&self, place: &[Level]) -> bool {
        self.0.len() == place.len() && self.0.iter().zip(place).all(|(name, level)| level.is_named(name))
    }
}

/// An object or array that encloses a value, with the name or index under which the value is found.
enum Level {
    Object { name: Option<String>, in_value: bool },
    Array { index: usize },
}

impl Level {
    fn is_named(&self, expected: &str) -> bool {
        match self {
            Self::Object { name, .. } => name.as_deref() == Some(expected),
            Self::Array { index } => expected.parse() == Ok(*index),
        }
    }
}

/// The place of a string in JSON.
pub(crate) struct Place<'a>(&'a [Level]);

impl Place<'_> {
    pub(crate) fn is(&self, path: &Path) -> bool {
        path.leads_to(self.0)
    }

    /// The name of the member that holds the string.
    pub(crate) fn name(&self) -> Option<&str> {
        match self.0.last()? {
            Level::Object { name, .. } => name.as_deref(),
            Level::Array { .. } => None,
        }
    }
}

/// Visits each complete string value of a JSON text, in order.
///
/// The text may be cut off, malformed elsewhere, or surrounded by other text. Takes linear time, and doesn't recurse.
pub(crate) fn for_each_string(text: &[u8], mut visit: impl FnMut(&Place<'_>, String)) {
    let mut levels: Vec<Level> = Vec::new();
    let mut at = 0;
    while let Some(byte) = text.get(at) {
        match byte {
            b'"' => {
                let Some(end) = end_of_string(text, at) else { return };
                let string = unescape(&text[at..=end]);
                at = end;
                match (levels.last_mut(), string) {
                    (Some(Level::Object { name, in_value: false }), string) => *name = string,
                    (_, Some(string)) => visit(&Place(&levels), string),
                    (_, None) => {}
                }
            }
            b'{' => levels.push(Level::Object { name: None, in_value: false }),
            b'[' => levels.push(Level::Array { index: 0 }),
            b'}' | b']' => {
                levels.pop();
            }
            b':' => {
                if let Some(Level::Object { in_value, .. }) = levels.last_mut() {
                    *in_value = true;
                }
            }
            b',' => match levels.last_mut() {
                Some(Level::Object { name, in_value }) => (*name, *in_value) = (None, false),
                Some(Level::Array { index }) => *index += 1,
                None => {}
            },
            _ => {}
        }
        at += 1;
    }
}

/// The position of the quote that closes the string.
fn end_of_string(text: &[u8], start: usize) -> Option<usize> {
    let mut at = start + 1;
    loop {
        match text.get(at)? {
            b'"' => return Some(at),
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
}

fn unescape(quoted: &[u8]) -> Option<String> {
    serde_json::from_slice(quoted).or_else(|_| serde_json::from_str(&String::from_utf8_lossy(quoted))).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn found(text: &str, path: &str) -> Option<String> {
        let (path, mut found) = (Path::parse(path), None);
        for_each_string(text.as_bytes(), |place, string| {
            if place.is(&path) {
                found = Some(string);
            }
        });
        found
    }

    #[test]
    fn a_string_is_found_in_json_that_is_cut_off_or_malformed_elsewhere() {
        for text in [
            r#"{"rt":"r2"}"#,
            r#"{"a":{"rt":"no"},"rt":"r2","b":["#,
            r#"{"a":1e400,"b":[1,{"rt":"no"}],"rt":"r2","c":"unfinished"#,
            r#"{"rt":"r2"} <!-- cached -->"#,
            r#")]}', {"rt" : "r\u0032"}"#,
            r#"{"a":"\\\"","rt":"r2",,,}"#,
            r#"{"rt":"r1","rt":"r2"}"#,
        ] {
            assert_eq!(found(text, "rt").as_deref(), Some("r2"), "{text}");
        }
        assert_eq!(found(r#"[0,[{"a.b":["x","r2"#, "/1/0/a.b/0").as_deref(), Some("x"));
        for text in
            [r#"{"rt":"r2"#, r#""rt":"r2""#, r#"{"a":{"rt":"r2"}}"#, r#"["rt","r2"]"#, r#"{"r2":"rt"}"#, "{\"rt"]
        {
            assert_eq!(found(text, "rt"), None, "{text}");
        }
    }

    #[test]
    fn bytes_that_are_not_utf_8_cost_no_string_but_their_own() {
        let text = b"{\"user\":\"J\xf6rg\",\"rt\":\"r2\",\"x\xff\":\"y\"}";
        let mut found = Vec::new();
        for_each_string(text, |place, string| found.push((place.name().map(str::to_owned), string)));
        assert_eq!(found[1], (Some("rt".to_owned()), "r2".to_owned()));
    }

    #[test]
    fn a_value_is_set_where_the_path_leads() {
        let mut members = json!({"query": "q", "variables": {"a": 1}}).as_object().unwrap().clone();
        assert!(Path::parse("variables.refreshToken").set("r1".into(), &mut members));
        assert!(Path::parse("/x~1y/z").set(2.into(), &mut members));
        let expected = json!({"query": "q", "variables": {"a": 1, "refreshToken": "r1"}, "x/y": {"z": 2}});
        assert_eq!(Value::Object(members.clone()), expected);
        assert!(!Path::parse("query.refreshToken").set("r1".into(), &mut members));
    }
}
