//! [`Successor`]: a rotated refresh token on its way to the client.

use crate::TestKit;
use crate::token::Token;

/// The delivery of a refresh token that supersedes another.
///
/// If a fault or a gate puts the delivery at risk and [`delivered`](Self::delivered) isn't called, dropping the value
/// allows one more use of the superseded token.
pub(crate) struct Successor {
    kit: TestKit,
    superseded: Token,
    is_at_risk: bool,
}

impl Successor {
    pub(crate) fn of(superseded: Token, kit: &TestKit) -> Self {
        Self { kit: kit.clone(), superseded, is_at_risk: false }
    }

    pub(crate) fn set_at_risk(&mut self, is_at_risk: bool) {
        self.is_at_risk = is_at_risk;
    }

    pub(crate) fn delivered(mut self) {
        self.is_at_risk = false;
    }
}

impl Drop for Successor {
    fn drop(&mut self) {
        if self.is_at_risk {
            self.kit.state().families.allow_reuse_once(self.superseded);
        }
    }
}
