//! The filter of system calls as a program of the kernel's packet filter: what is not let through fails
//! with `EPERM`.

use libc::{c_long, sock_filter};

#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: u32 = 0xc000_00b7;

/// Offsets in what the kernel shows of a call: its number, the architecture, and its arguments, of
/// which the lower half comes first.
const NUMBER: u32 = 0;
const MACHINE: u32 = 4;
const fn argument(index: u32) -> u32 {
    16 + 8 * index
}

/// Calls that compute, read, wait and end.
const ALLOWED: &[c_long] = &[
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_pread64,
    libc::SYS_close,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_statfs,
    libc::SYS_fstatfs,
    libc::SYS_lseek,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_readlinkat,
    libc::SYS_getdents64,
    libc::SYS_getcwd,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_pipe2,
    libc::SYS_ppoll,
    libc::SYS_pselect6,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_membarrier,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_futex,
    libc::SYS_set_robust_list,
    libc::SYS_set_tid_address,
    libc::SYS_rseq,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_getrandom,
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_gettimeofday,
    libc::SYS_times,
    libc::SYS_getrusage,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_getppid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_uname,
    libc::SYS_sysinfo,
    // To start the interpreter. Whatever it starts in its own place stays behind the filter.
    libc::SYS_execve,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// The older names that x86-64 has for some of them.
#[cfg(target_arch = "x86_64")]
const OLDER: &[c_long] = &[
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_access,
    libc::SYS_readlink,
    libc::SYS_getdents,
    libc::SYS_dup2,
    libc::SYS_pipe,
    libc::SYS_poll,
    libc::SYS_select,
    libc::SYS_time,
    libc::SYS_arch_prctl,
];
#[cfg(target_arch = "aarch64")]
const OLDER: &[c_long] = &[];

/// Flags with which a file is opened to be changed.
const CHANGING: u32 =
    (libc::O_ACCMODE | libc::O_CREAT | libc::O_TRUNC | (libc::O_TMPFILE & !libc::O_DIRECTORY)) as u32;
/// What may be done with an open file: copies of it and its flags.
const FILE_COMMANDS: [i32; 6] =
    [libc::F_DUPFD, libc::F_DUPFD_CLOEXEC, libc::F_GETFD, libc::F_SETFD, libc::F_GETFL, libc::F_SETFL];

fn statement(code: u32, value: u32) -> sock_filter {
    sock_filter { code: code as u16, jt: 0, jf: 0, k: value }
}

fn load(offset: u32) -> sock_filter {
    statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset)
}

fn give(action: u32) -> sock_filter {
    statement(libc::BPF_RET | libc::BPF_K, action)
}

/// Goes on with the next statement where the test holds, and passes over `skip` where it doesn't.
fn unless(test: u32, value: u32, skip: u8) -> sock_filter {
    sock_filter { code: (libc::BPF_JMP | test | libc::BPF_K) as u16, jt: 0, jf: skip, k: value }
}

fn fails(error: i32) -> sock_filter {
    give(libc::SECCOMP_RET_ERRNO | error as u32)
}

/// The whole filter.
pub(super) fn program() -> Vec<sock_filter> {
    let allow = give(libc::SECCOMP_RET_ALLOW);
    let equal = libc::BPF_JEQ;
    let mut filter = vec![
        load(MACHINE),
        sock_filter { code: (libc::BPF_JMP | equal | libc::BPF_K) as u16, jt: 1, jf: 0, k: ARCHITECTURE },
        give(libc::SECCOMP_RET_KILL_PROCESS),
        load(NUMBER),
    ];
    for call in ALLOWED.iter().chain(OLDER) {
        filter.extend([unless(equal, *call as u32, 1), allow]);
    }
    let mut opens = vec![(libc::SYS_openat, 2)];
    #[cfg(target_arch = "x86_64")]
    opens.push((libc::SYS_open, 1));
    for (call, flags) in opens {
        filter.extend([
            unless(equal, call as u32, 4),
            load(argument(flags)),
            unless(libc::BPF_JSET, CHANGING, 1),
            fails(libc::EACCES),
            allow,
        ]);
    }
    // Threads, but no processes. The newer call hides its flags from filters.
    filter.extend([
        unless(equal, libc::SYS_clone as u32, 4),
        load(argument(0)),
        unless(libc::BPF_JSET, libc::CLONE_THREAD as u32, 1),
        allow,
        fails(libc::EPERM),
        unless(equal, libc::SYS_clone3 as u32, 1),
        fails(libc::ENOSYS),
    ]);
    // Limits are read, not set: the place of new ones is empty.
    filter.extend([
        unless(equal, libc::SYS_prlimit64 as u32, 6),
        load(argument(2)),
        unless(equal, 0, 3),
        load(argument(2) + 4),
        unless(equal, 0, 1),
        allow,
        fails(libc::EPERM),
    ]);
    let commands = 2 * FILE_COMMANDS.len() as u8;
    filter.extend([unless(equal, libc::SYS_fcntl as u32, commands + 2), load(argument(1))]);
    for command in FILE_COMMANDS {
        filter.extend([unless(equal, command as u32, 1), allow]);
    }
    filter.push(fails(libc::EPERM));
    // Nothing is a terminal.
    filter.extend([unless(equal, libc::SYS_ioctl as u32, 1), fails(libc::ENOTTY), fails(libc::EPERM)]);
    filter
}
