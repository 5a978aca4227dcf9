//! Regression scripts, on which the session and the model once disagreed.

use crate::compare;
use crate::script::Line::{self, *};
use crate::script::{Answer, Call, Fault, Held, RequestKind, Script};

const FIRST: usize = 0;
const SECOND: usize = 1;

fn assert_agreement(rotates: bool, lines: impl IntoIterator<Item = Line>) {
    let script = Script { rotates, seed: 0, lines: lines.into_iter().collect() };
    compare(&script).unwrap_or_else(|difference| panic!("{difference}\n{script}"));
}

fn get(slow: bool) -> Line {
    Send { session: FIRST, kind: RequestKind::Get, times: 1, slow }
}

fn next(answer: Answer) -> Line {
    NextAnswer { session: FIRST, answer }
}

const EXPIRE: Line = Expire { session: FIRST };

#[test]
fn a_late_401_causes_one_refresh_if_the_refresh_returns_a_token_that_was_refused_meanwhile() {
    assert_agreement(
        false,
        [
            Refresh { session: FIRST },
            EXPIRE,
            get(true),
            get(false),
            next(Answer::Nothing),
            EXPIRE,
            next(Answer::SameAccessToken),
            get(false),
            Wait(30_600),
            ApiAnswers,
        ],
    );
}

#[test]
fn a_rejection_that_cannot_be_verified_leaves_the_refresh_token_in_doubt() {
    assert_agreement(
        false,
        [
            next(Answer::InDoubt),
            Inject { session: FIRST, call: Call::Load, fault: Fault::Fail },
            EXPIRE,
            get(false),
            next(Answer::Rejected),
            Wait(1_000),
            get(false),
        ],
    );
}

#[test]
fn the_end_of_a_session_is_written_at_once_after_another_write_has_failed() {
    assert_agreement(
        false,
        [
            Inject { session: FIRST, call: Call::Commit, fault: Fault::Fail },
            next(Answer::Nothing),
            next(Answer::Rejected),
            Refresh { session: FIRST },
            AuthAnswers { session: FIRST, answer: Answer::Tokens },
            SignIn { session: FIRST, held: Held::Both },
            EXPIRE,
            get(false),
        ],
    );
}

#[test]
fn a_peer_waits_for_the_shortened_lease_of_an_ended_session_whose_record_cannot_be_deleted() {
    assert_agreement(
        false,
        [
            next(Answer::Rejected),
            Inject { session: FIRST, call: Call::Clear, fault: Fault::Fail },
            Refresh { session: FIRST },
            Wait(15_000),
            Expire { session: SECOND },
            Send { session: SECOND, kind: RequestKind::Get, times: 1, slow: false },
        ],
    );
}

#[test]
fn a_renewal_that_fails_after_its_effect_keeps_the_claim() {
    assert_agreement(
        false,
        [
            Inject { session: FIRST, call: Call::Renew, fault: Fault::FailLate },
            Inject { session: FIRST, call: Call::Commit, fault: Fault::Fail },
            EXPIRE,
            get(false),
            Inject { session: FIRST, call: Call::Renew, fault: Fault::Fail },
            Wait(330_100),
            Send { session: SECOND, kind: RequestKind::Get, times: 1, slow: false },
        ],
    );
}

#[test]
fn a_rejection_that_cannot_be_verified_still_shortens_the_claim() {
    for (call, fault) in [(Call::Renew, Fault::FailLate), (Call::Load, Fault::Fail)] {
        assert_agreement(
            false,
            [
                next(Answer::Rejected),
                Inject { session: FIRST, call: Call::Release, fault: Fault::Fail },
                EXPIRE,
                Inject { session: FIRST, call, fault },
                get(false),
                Send { session: SECOND, kind: RequestKind::Get, times: 1, slow: false },
                Wait(15_000),
            ],
        );
    }
}

#[test]
fn a_peer_that_waits_for_a_claim_learns_that_the_lease_was_shortened() {
    assert_agreement(
        false,
        [
            next(Answer::Nothing),
            Inject { session: FIRST, call: Call::Renew, fault: Fault::FailLate },
            Inject { session: FIRST, call: Call::Release, fault: Fault::Fail },
            Refresh { session: FIRST },
            Refresh { session: SECOND },
            AuthAnswers { session: FIRST, answer: Answer::Rejected },
            Wait(15_000),
        ],
    );
}
