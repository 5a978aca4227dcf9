//! The calls to the operating system that the standard library doesn't have, or not on every system.

#[cfg(not(unix))]
mod other;
#[cfg(unix)]
mod unix;

#[cfg(not(unix))]
pub(super) use self::other::Handle;
#[cfg(unix)]
pub(super) use self::unix::Handle;

/// The purpose for which a file is opened.
#[derive(Clone, Copy)]
pub(super) enum How {
    Read,
    /// To lock the file, which is made if there is none.
    Lock,
    /// To write a file that doesn't exist yet.
    Create,
}

/// Returns `true` for the number (`statfs`) of a Linux file system that several hosts may share.
///
/// Any FUSE file system may, and some of them accept locks that exclude nothing.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn is_remote(kind: u32) -> bool {
    const REMOTE: [u32; 16] = [
        0x0000_6969, // NFS
        0x0000_517b, // SMB
        0xfe53_4d42, // SMB 2
        0xff53_4d42, // CIFS
        0x0102_1997, // 9P
        0x6573_5546, // FUSE, virtiofs
        0x00c3_6400, // Ceph
        0x5346_414f, // AFS
        0x6b41_4653, // kAFS
        0x7375_7245, // Coda
        0x0bd0_0bd0, // Lustre
        0x4750_4653, // GPFS
        0x7461_636f, // OCFS2
        0x0116_1970, // GFS2
        0x786f_4256, // VirtualBox shared folders
        0x7c7c_6673, // Parallels shared folders
    ];
    REMOTE.contains(&kind)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn network_and_fuse_file_systems_are_told_from_local_ones() {
        let local = [0xef53, 0x9123_683e, 0x5846_5342, 0x0102_1994, 0x794c_7630, 0x2fc1_2fc1];
        assert!(local.iter().all(|kind| !is_remote(*kind)), "ext4, btrfs, XFS, tmpfs, overlayfs, ZFS");
        assert!([0x6969, 0x6573_5546, 0x0102_1997].iter().all(|kind| is_remote(*kind)), "NFS, FUSE, 9P");
    }
}
