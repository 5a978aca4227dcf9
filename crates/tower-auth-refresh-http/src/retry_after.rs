//! The delay that a server asks for: `Retry-After`, and the reset time of a rate limit.

use std::time::{Duration, SystemTime};

use http::HeaderMap;
use http::header::{DATE, RETRY_AFTER};

/// The reset times of rate limits: Okta's, GitHub's, and that of the IETF's draft
/// (`draft-ietf-httpapi-ratelimit-headers`, up to its seventh version). Some servers send seconds since 1970 in them,
/// some the seconds that are left.
const RESETS: [&str; 3] = ["x-rate-limit-reset", "x-ratelimit-reset", "ratelimit-reset"];

/// A reset time from here on is a date: 2001 in seconds since 1970, or in milliseconds.
const SECONDS_SINCE_1970: f64 = 1e9;
const MILLISECONDS_SINCE_1970: f64 = 1e12;

/// Reads `Retry-After` (RFC 9110 §10.2.3): seconds, or a date.
pub(crate) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        // More digits than fit are a very long time.
        return Some(Duration::from_secs(text.parse().unwrap_or(u64::MAX)));
    }
    let at = httpdate::parse_http_date(text).ok()?;
    Some(at.duration_since(server_time(headers)).unwrap_or(Duration::ZERO))
}

/// Reads the time at which a rate limit is reset.
pub(crate) fn rate_limit_reset(headers: &HeaderMap) -> Option<Duration> {
    RESETS.iter().find_map(|name| {
        let text = headers.get(*name)?.to_str().ok()?.trim();
        let value: f64 = text.parse().ok().filter(|value: &f64| value.is_finite())?;
        let seconds = if value < SECONDS_SINCE_1970 {
            value
        } else {
            let at = if value < MILLISECONDS_SINCE_1970 { value } else { value / 1000.0 };
            let now = server_time(headers).duration_since(SystemTime::UNIX_EPOCH).ok()?;
            (at - now.as_secs_f64()).max(0.0)
        };
        Duration::try_from_secs_f64(seconds).ok()
    })
}

/// The server's clock, which may differ from this one, if the answer shows it.
fn server_time(headers: &HeaderMap) -> SystemTime {
    let date = headers.get(DATE).and_then(|date| httpdate::parse_http_date(date.to_str().ok()?).ok());
    date.unwrap_or_else(SystemTime::now)
}

#[cfg(test)]
mod tests {
    use http::HeaderName;

    use super::*;

    fn retry_after_of(value: &str) -> Option<u64> {
        let headers = HeaderMap::from_iter([(RETRY_AFTER, value.parse().unwrap())]);
        retry_after(&headers).map(|delay| delay.as_secs())
    }

    #[test]
    fn retry_after_is_seconds_or_a_date_as_it_was_given() {
        assert_eq!(retry_after_of("0"), Some(0));
        assert_eq!(retry_after_of(" 7 "), Some(7));
        assert_eq!(retry_after_of("86400"), Some(86_400));
        assert_eq!(retry_after_of("99999999999999999999999"), Some(u64::MAX));
        assert_eq!(retry_after_of("Sun, 06 Nov 1994 08:49:37 GMT"), Some(0));
        assert!(retry_after_of("Fri, 31 Dec 9999 23:59:59 GMT") > Some(u64::from(u32::MAX)));
        let soon = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(100));
        assert!((98..=100).contains(&retry_after_of(&soon).unwrap()));
        for unreadable in ["", "-1", "1.5", "soon", "7s"] {
            assert_eq!(retry_after_of(unreadable), None, "{unreadable:?}");
        }
    }

    #[test]
    fn a_date_in_retry_after_counts_from_that_of_the_answer() {
        let day = Duration::from_secs(24 * 60 * 60);
        for clock in [SystemTime::now() - day, SystemTime::now() + day] {
            let later = |seconds| httpdate::fmt_http_date(clock + Duration::from_secs(seconds)).parse().unwrap();
            let headers = HeaderMap::from_iter([(DATE, later(0)), (RETRY_AFTER, later(7))]);
            assert_eq!(retry_after(&headers), Some(Duration::from_secs(7)));
        }
        let soon = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(100)).parse().unwrap();
        let headers = HeaderMap::from_iter([(DATE, "yesterday".parse().unwrap()), (RETRY_AFTER, soon)]);
        assert!((98..=100).contains(&retry_after(&headers).unwrap().as_secs()));
    }

    #[test]
    fn the_reset_of_a_rate_limit_is_a_number_of_seconds_or_a_time() {
        let date = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let reset = |name: &'static str, value: &str| {
            let date = httpdate::fmt_http_date(date).parse().unwrap();
            let headers = HeaderMap::from_iter([(DATE, date), (HeaderName::from_static(name), value.parse().unwrap())]);
            rate_limit_reset(&headers).map(|delay| delay.as_secs())
        };
        for name in RESETS {
            assert_eq!(reset(name, "30"), Some(30));
            assert_eq!(reset(name, "0.5"), Some(0));
            assert_eq!(reset(name, "1800000042"), Some(42));
            assert_eq!(reset(name, "1800000042000"), Some(42));
            assert_eq!(reset(name, "1700000000"), Some(0));
            assert_eq!(reset(name, "999999999"), Some(999_999_999));
            // September 2001, in either unit.
            assert_eq!(reset(name, "1000000000"), Some(0));
            assert_eq!(reset(name, "1000000000000"), Some(0));
            for unreadable in ["", "-1", "soon", "NaN", "inf", "-inf"] {
                assert_eq!(reset(name, unreadable), None, "{unreadable:?}");
            }
        }
        assert_eq!(rate_limit_reset(&HeaderMap::new()), None);
    }
}
