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
