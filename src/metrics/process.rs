//! The operating system's figures of this process. Linux only: elsewhere the metrics are left out.

/// Numbers of this process.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Process {
    pub(super) cpu_seconds: f64,
    pub(super) resident_bytes: u64,
    pub(super) virtual_bytes: u64,
    pub(super) open_fds: u64,
    pub(super) max_fds: Option<u64>,
    pub(super) threads: i64,
    pub(super) started: f64,
}

#[cfg(target_os = "linux")]
pub(super) fn read() -> Option<Process> {
    use procfs::WithCurrentSystemInfo;

    let this = procfs::process::Process::myself().ok()?;
    let stat = this.stat().ok()?;
    let ticks = procfs::ticks_per_second() as f64;
    let booted = procfs::boot_time_secs().ok()?;
    let limit = this.limits().ok().map(|limits| limits.max_open_files.soft_limit);
    Some(Process {
        cpu_seconds: (stat.utime + stat.stime) as f64 / ticks,
        resident_bytes: stat.rss_bytes().get(),
        virtual_bytes: stat.vsize,
        open_fds: this.fd_count().ok()? as u64,
        max_fds: limit.and_then(|limit| match limit {
            procfs::process::LimitValue::Value(most) => Some(most),
            procfs::process::LimitValue::Unlimited => None,
        }),
        threads: stat.num_threads,
        started: booted as f64 + stat.starttime as f64 / ticks,
    })
}

#[cfg(not(target_os = "linux"))]
pub(super) fn read() -> Option<Process> {
    None
}

/// The memory that this process may take, in bytes: what its control groups, its address space and the machine allow,
/// whichever is least.
#[cfg(target_os = "linux")]
pub(crate) fn memory_allowed() -> Option<u64> {
    use procfs::Current as _;
    use procfs::process::LimitValue;

    let machine = procfs::Meminfo::current().ok().map(|memory| memory.mem_total);
    let this = procfs::process::Process::myself().ok();
    let space = this.and_then(|this| this.limits().ok()).and_then(|limits| match limits.max_address_space.soft_limit {
        LimitValue::Value(most) => Some(most),
        LimitValue::Unlimited => None,
    });
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let groups = of_groups(std::path::Path::new("/sys/fs/cgroup"), &groups);
    [machine, space, groups].into_iter().flatten().min()
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn memory_allowed() -> Option<u64> {
    None
}

/// The least limit of a process's control groups and those around them, of both versions (cgroups(7)). `groups`: the text
/// of `/proc/self/cgroup`. In a container the paths may be those outside of it; then the mount itself is its group.
#[cfg(target_os = "linux")]
fn of_groups(mount: &std::path::Path, groups: &str) -> Option<u64> {
    let limits = groups.lines().flat_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        let (root, file) = match controllers {
            "" => (mount.to_owned(), "memory.max"),
            _ if controllers.split(',').any(|name| name == "memory") => (mount.join("memory"), "memory.limit_in_bytes"),
            _ => return Vec::new(),
        };
        let group = root.join(path.trim_start_matches('/'));
        let around = group.ancestors().take_while(|folder| folder.starts_with(&root));
        around.filter_map(|folder| std::fs::read_to_string(folder.join(file)).ok()?.trim().parse().ok()).collect()
    });
    limits.min()
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn the_least_limit_of_all_groups_counts_m90() {
        let folder = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = folder.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        let of = |groups: &str| of_groups(folder.path(), groups);
        assert_eq!(of("0::/a/b\n"), None);
        write("a/b/memory.max", "max\n");
        write("a/memory.max", "4096\n");
        assert_eq!(of("0::/a/b\n"), Some(4096));
        write("memory.max", "2048\n");
        // A path from outside the container.
        assert_eq!(of("0::/../../elsewhere\n"), Some(2048));
        write("memory/c/memory.limit_in_bytes", "1024\n");
        assert_eq!(of("12:cpu,cpuacct:/c\n4:memory:/c\n0::/a\n"), Some(1024));
        assert!(memory_allowed().is_some_and(|bytes| bytes > 1 << 20));
    }
}
