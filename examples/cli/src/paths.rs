//! [`Paths`]: the directories of the user's settings and sessions, by the XDG base directory specification.

use std::env;
use std::path::PathBuf;

use crate::failure::{Failure, Kind};

#[derive(Clone, Debug)]
pub(crate) struct Paths {
    config: PathBuf,
    state: PathBuf,
}

impl Paths {
    pub(crate) fn of_user() -> Result<Self, Failure> {
        let app = |variable, in_home: &str| {
            // The specification has relative paths ignored.
            let set = env::var_os(variable).map(PathBuf::from).filter(|path| path.is_absolute());
            let base = set.or_else(|| Some(env::home_dir().filter(|home| home.is_absolute())?.join(in_home)));
            let absent = || Failure::new(Kind::Other, format!("neither {variable} nor the home directory is known"));
            base.map(|base| base.join("app")).ok_or_else(absent)
        };
        Ok(Self { config: app("XDG_CONFIG_HOME", ".config")?, state: app("XDG_STATE_HOME", ".local/state")? })
    }

    /// The settings of a profile.
    pub(crate) fn profile(&self, name: &str) -> PathBuf {
        self.config.join("profiles").join(format!("{name}.json"))
    }

    /// The directory of a profile's tokens.
    pub(crate) fn sessions(&self, name: &str) -> PathBuf {
        self.state.join("sessions").join(name)
    }
}
