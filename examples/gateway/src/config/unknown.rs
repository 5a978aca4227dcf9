//! Variables `GATEWAY_…` that are no settings: most likely misspelt ones.

use clap::{Command, CommandFactory};

use super::Args;

const PREFIX: &str = "GATEWAY_";

/// The similarity from which on a name is suggested; 1 is equality.
const SIMILAR: f64 = 0.8;

/// A variable that looks like a setting, but is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownVariable {
    /// The name of the variable.
    pub name: String,
    /// The most similar name of a setting.
    pub similar: Option<String>,
}

impl Args {
    /// Returns the variables of the environment that look like settings, but are none.
    #[must_use]
    pub fn unknown_variables() -> Vec<UnknownVariable> {
        let names = std::env::vars_os().map(|(name, _)| name.to_string_lossy().into_owned());
        unknown(&Self::command(), names)
    }
}

fn unknown(command: &Command, names: impl Iterator<Item = String>) -> Vec<UnknownVariable> {
    let known: Vec<_> =
        command.get_arguments().filter_map(|setting| Some(setting.get_env()?.to_string_lossy().into_owned())).collect();
    let mut unknown: Vec<_> = names
        .filter(|name| name.starts_with(PREFIX) && !known.contains(name) && !is_of_kubernetes(name))
        .map(|name| UnknownVariable { similar: most_similar(&name, &known), name })
        .collect();
    unknown.sort_by(|one, other| one.name.cmp(&other.name));
    unknown
}

/// Checks for the variables that Kubernetes sets in every container for a service with the name `gateway`.
fn is_of_kubernetes(name: &str) -> bool {
    let rest = &name[PREFIX.len()..];
    rest.starts_with("SERVICE_") || rest == "PORT" || rest.starts_with("PORT_")
}

fn most_similar(name: &str, known: &[String]) -> Option<String> {
    let similarity = |other: &str| strsim::jaro_winkler(&name[PREFIX.len()..], other.trim_start_matches(PREFIX));
    let similar = known.iter().map(|other| (similarity(other), other)).filter(|(similarity, _)| *similarity >= SIMILAR);
    similar.max_by(|(one, _), (other, _)| one.total_cmp(other)).map(|(_, name)| name.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_variable_is_found_with_the_setting_that_was_meant() {
        let unknown_of = |name: &str| unknown(&Args::command(), [name.to_owned()].into_iter());
        for (name, similar) in [
            ("GATEWAY_BODYLIMIT", Some("GATEWAY_BODY_LIMIT")),
            ("GATEWAY_UPSTREAM_TIME_OUT", Some("GATEWAY_UPSTREAM_TIMEOUT")),
            ("GATEWAY_CLIENT_ID_", Some("GATEWAY_CLIENT_ID")),
            ("GATEWAY_QUX", None),
            ("GATEWAY_", None),
        ] {
            let expected = UnknownVariable { name: name.to_owned(), similar: similar.map(ToOwned::to_owned) };
            assert_eq!(unknown_of(name), [expected]);
        }
        for known in ["GATEWAY_BODY_LIMIT", "GATEWAY_DEMO", "GATEWAYS", "PATH"] {
            assert_eq!(unknown_of(known), []);
        }
        for kubernetes in ["GATEWAY_SERVICE_HOST", "GATEWAY_SERVICE_PORT_HTTP", "GATEWAY_PORT", "GATEWAY_PORT_80_TCP"] {
            assert_eq!(unknown_of(kubernetes), []);
        }
    }
}
