//! Scripts that the session and the model once did not agree on.

use crate::compare;
use crate::script::Line::{self, *};
use crate::script::{Answer, Call, Fault, Script, What, With};

const FIRST: usize = 0;
const SECOND: usize = 1;

fn agrees(rotates: bool, lines: impl IntoIterator<Item = Line>) {
    let script = Script { rotates, seed: 0, lines: lines.into_iter().collect() };
    compare(&script).unwrap_or_else(|difference| panic!("{difference}\n{script}"));
}

fn get(slow: bool) -> Line {
    Send { who: FIRST, what: What::Get, times: 1, slow }
}

fn next(answer: Answer) -> Line {
    Next { who: FIRST, answer }
}

const EXPIRE: Line = Expire { who: FIRST };

#[test]
fn a_late_401_is_one_refresh_where_that_brings_the_token_that_was_refused_since() {
    agrees(
        false,
        [
            RefreshByHand { who: FIRST },
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
fn a_rejection_that_cannot_be_verified_leaves_the_doubt() {
    agrees(
        false,
        [
            next(Answer::InDoubt),
            Break { who: FIRST, call: Call::Load, fault: Fault::Fail },
            EXPIRE,
            get(false),
            next(Answer::Rejected),
            Wait(1_000),
            get(false),
        ],
    );
}

#[test]
fn the_end_is_written_at_once_though_another_write_has_failed() {
    agrees(
        false,
        [
            Break { who: FIRST, call: Call::Commit, fault: Fault::Fail },
            next(Answer::Nothing),
            next(Answer::Rejected),
            RefreshByHand { who: FIRST },
            Answers { who: FIRST, answer: Answer::Tokens },
            SignIn { who: FIRST, with: With::Both },
            EXPIRE,
            get(false),
        ],
    );
}

#[test]
fn a_peer_waits_for_the_lease_of_the_end_where_its_record_cannot_be_deleted() {
    agrees(
        false,
        [
            next(Answer::Rejected),
            Break { who: FIRST, call: Call::Clear, fault: Fault::Fail },
            RefreshByHand { who: FIRST },
            Wait(15_000),
            Expire { who: SECOND },
            Send { who: SECOND, what: What::Get, times: 1, slow: false },
        ],
    );
}

#[test]
fn a_renewal_that_only_seems_to_fail_keeps_the_claim() {
    agrees(
        false,
        [
            Break { who: FIRST, call: Call::Renew, fault: Fault::FailLate },
            Break { who: FIRST, call: Call::Commit, fault: Fault::Fail },
            EXPIRE,
            get(false),
            Break { who: FIRST, call: Call::Renew, fault: Fault::Fail },
            Wait(330_100),
            Send { who: SECOND, what: What::Get, times: 1, slow: false },
        ],
    );
}

#[test]
fn a_rejection_that_cannot_be_verified_has_shortened_the_claim_all_the_same() {
    for (call, fault) in [(Call::Renew, Fault::FailLate), (Call::Load, Fault::Fail)] {
        agrees(
            false,
            [
                next(Answer::Rejected),
                Break { who: FIRST, call: Call::Release, fault: Fault::Fail },
                EXPIRE,
                Break { who: FIRST, call, fault },
                get(false),
                Send { who: SECOND, what: What::Get, times: 1, slow: false },
                Wait(15_000),
            ],
        );
    }
}

#[test]
fn whoever_waits_for_a_claim_hears_that_it_was_shortened() {
    agrees(
        false,
        [
            next(Answer::Nothing),
            Break { who: FIRST, call: Call::Renew, fault: Fault::FailLate },
            Break { who: FIRST, call: Call::Release, fault: Fault::Fail },
            RefreshByHand { who: FIRST },
            RefreshByHand { who: SECOND },
            Answers { who: FIRST, answer: Answer::Rejected },
            Wait(15_000),
        ],
    );
}
