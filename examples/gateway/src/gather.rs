//! [`gather`]: sends short data by a plain `send`, which takes the operating system less time than `writev`.

use std::io::IoSlice;

/// The room for data that consists of several parts.
pub(crate) const GATHERED: usize = 1024;

/// Returns the parts as one: the only one itself, or a copy of several short ones. Returns `None` if they are long.
pub(crate) fn gather<'a>(parts: &'a [IoSlice<'_>], room: &'a mut [u8; GATHERED]) -> Option<&'a [u8]> {
    if let [part] = parts {
        return Some(part);
    }
    let mut length = 0;
    for part in parts {
        room.get_mut(length..length + part.len())?.copy_from_slice(part);
        length += part.len();
    }
    Some(&room[..length])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_parts_are_gathered_in_order() {
        let (long, mut room) = ([7; GATHERED], [0; GATHERED]);
        let mut gather = |parts: &[&[u8]]| {
            let parts: Vec<_> = parts.iter().map(|part| IoSlice::new(part)).collect();
            gather(&parts, &mut room).map(<[u8]>::to_vec)
        };
        assert_eq!(gather(&[b"HTTP/1.1 200 OK\r\n", b"\r\n", b"", b"body"]).unwrap(), b"HTTP/1.1 200 OK\r\n\r\nbody");
        assert_eq!(gather(&[&long]).unwrap(), long);
        assert_eq!(gather(&[&[long, long].concat()]).unwrap().len(), 2 * GATHERED);
        assert_eq!(gather(&[&long[..1000], &long[..24]]).unwrap(), long);
        assert_eq!(gather(&[&long[..1000], &long[..25]]), None);
        assert_eq!(gather(&[]).unwrap(), b"");
    }
}
