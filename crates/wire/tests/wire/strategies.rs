//! Random values of every type of the protocol, for properties.

use std::net::Ipv4Addr;

use kiln_wire::{
    Activity, AttachRequest, Attached, Auth, Capability, CgroupUsage, Channel, Done, Entry, ErrorCode, ExecRequest,
    ExitStatus, Exited, Fault, FileKind, FileRequest, FileStat, FilesRequest, ForwardRequest, Goodbye, GoodbyeReason,
    Hello, Identity, Interface, Lagged, Lease, Limits, ListPage, LogSource, LogsRequest, Message, MetricsRequest,
    MetricsSample, Mount, Network, OnDetach, Owner, ReadRange, Reply, Resize, SessionInfo, SessionSpec, SessionState,
    SessionsRequest, Signal, Started, Stdin, Sync, Text, Tty, WatchEvent, WatchEventKind, WatchRequest, WriteMode,
};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

/// A message that owns its data, because `Message` borrows it from a frame.
#[derive(Debug, Clone)]
pub enum Owned {
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    Data(Channel, Vec<u8>),
    Other(Message<'static>),
}

impl Owned {
    pub fn message(&self) -> Message<'_> {
        match self {
            Self::Ping(bytes) => Message::Ping(bytes),
            Self::Pong(bytes) => Message::Pong(bytes),
            Self::Data(channel, bytes) => Message::Data(*channel, bytes),
            Self::Other(message) => message.clone(),
        }
    }
}

/// Any message.
pub fn message() -> impl Strategy<Value = Owned> {
    prop_oneof![
        2 => bytes().prop_map(Owned::Ping),
        2 => bytes().prop_map(Owned::Pong),
        6 => (select(&[Channel::In, Channel::Out, Channel::Err][..]), bytes()).prop_map(|(c, b)| Owned::Data(c, b)),
        10 => link_message().prop_map(Owned::Other),
        20 => request().prop_map(Owned::Other),
        20 => answer().prop_map(Owned::Other),
        6 => control().prop_map(Owned::Other),
    ]
}

pub fn bytes() -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), 0..300)
}

/// Strings that are UTF-8, strings that are not, empty ones.
pub fn text() -> impl Strategy<Value = Text> {
    prop_oneof![any::<String>().prop_map(Text::from), vec(any::<u8>(), 0..40).prop_map(Text::from)]
}

/// Cuts `bytes` at `cuts`, each taken modulo the length.
pub fn cut<'a>(bytes: &'a [u8], cuts: &[usize]) -> Vec<&'a [u8]> {
    let mut at: Vec<usize> = cuts.iter().map(|cut| cut % (bytes.len() + 1)).chain([0, bytes.len()]).collect();
    at.sort_unstable();
    at.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect()
}

fn name() -> impl Strategy<Value = String> {
    any::<String>()
}

/// Exit codes and signals, with the edges far more often than at random.
fn code() -> impl Strategy<Value = i32> {
    prop_oneof![select(&[-1, 0, 1, 255, 256, i32::MIN, i32::MAX][..]), any::<i32>()]
}

fn characters() -> impl Strategy<Value = u16> {
    prop_oneof![select(&[0, 1, u16::MAX][..]), any::<u16>()]
}

fn link_message() -> impl Strategy<Value = Message<'static>> {
    let hello = (any::<u16>(), name(), vec(capability(), 0..6), name())
        .prop_map(|(version, agent, capabilities, boot_id)| Hello { version, agent, capabilities, boot_id });
    let identity = (name(), name(), vec(name(), 0..3)).prop_map(|(hostname, machine_id, macs)| Identity {
        hostname,
        machine_id,
        macs,
    });
    let sync = (any::<u64>(), name(), option::of(identity), option::of(network()), vec(mount(), 0..3)).prop_map(
        |(host_time_ns, seed, identity, network, mounts)| Sync { host_time_ns, seed, identity, network, mounts },
    );
    let reason = prop_oneof![
        (any::<u16>(), any::<u16>()).prop_map(|(ours, theirs)| GoodbyeReason::Version { ours, theirs }),
        Just(GoodbyeReason::Unauthorized),
        name().prop_map(GoodbyeReason::Protocol),
        Just(GoodbyeReason::Replaced),
        Just(GoodbyeReason::Shutdown),
        Just(GoodbyeReason::Unknown),
    ];
    prop_oneof![
        hello.prop_map(Message::Hello),
        name().prop_map(|token| Message::Auth(Auth { token })),
        sync.prop_map(Message::Sync),
        reason.prop_map(|reason| Message::Goodbye(Goodbye { reason })),
    ]
}

fn network() -> impl Strategy<Value = Network> {
    let address = any::<[u8; 4]>().prop_map(Ipv4Addr::from);
    let interface = (address.clone(), any::<u8>(), option::of(address.clone()), option::of(any::<u16>()))
        .prop_map(|(address, prefix, gateway, mtu)| Interface { address, prefix, gateway, mtu });
    (vec(interface, 0..3), vec(address, 0..3)).prop_map(|(interfaces, nameservers)| Network { interfaces, nameservers })
}

fn mount() -> impl Strategy<Value = Mount> {
    (name(), text(), name(), any::<bool>()).prop_map(|(device, target, fstype, read_only)| Mount {
        device,
        target,
        fstype,
        read_only,
    })
}

fn capability() -> impl Strategy<Value = Capability> {
    select(
        &[
            Capability::Auth,
            Capability::Cgroups,
            Capability::Init,
            Capability::Code,
            Capability::Trace,
            Capability::Grace,
            Capability::Setup,
            Capability::Unknown,
        ][..],
    )
}

fn request() -> impl Strategy<Value = Message<'static>> {
    prop_oneof![
        4 => exec().prop_map(|exec| Message::Exec(Box::new(exec))),
        1 => (name(), option::of(any::<u64>()), any::<bool>(), any::<bool>()).prop_map(
            |(session, offset, write, steal)| Message::Attach(AttachRequest { session, offset, write, steal })
        ),
        6 => files().prop_map(|files| Message::Files(Box::new(files))),
        1 => forward().prop_map(Message::Forward),
        1 => (text(), any::<bool>()).prop_map(|(path, recursive)| Message::Watch(WatchRequest { path, recursive })),
        1 => option::of(any::<u64>()).prop_map(|interval_ms| Message::Metrics(MetricsRequest { interval_ms })),
        1 => (select(&[LogSource::Kernel, LogSource::Agent][..]), any::<bool>())
            .prop_map(|(source, follow)| Message::Logs(LogsRequest { source, follow })),
        1 => sessions().prop_map(Message::Sessions),
        1 => select(&[Message::Freeze, Message::Thaw, Message::Activity][..]),
    ]
}

fn exec() -> impl Strategy<Value = ExecRequest> {
    let tty = (characters(), characters(), name()).prop_map(|(rows, cols, term)| Tty { rows, cols, term });
    let session = (
        option::of(name()),
        option::of(any::<u64>()),
        select(&[OnDetach::Keep, OnDetach::Kill][..]),
        option::of(any::<u32>()),
    )
        .prop_map(|(name, idle_timeout_ms, on_detach, ring_bytes)| SessionSpec {
            name,
            idle_timeout_ms,
            on_detach,
            ring_bytes,
        });
    let command = (vec(text(), 0..5), vec((text(), text()), 0..4), any::<bool>(), option::of(text()));
    let setting = (option::of(name()), select(&[Stdin::None, Stdin::Stream][..]), option::of(tty), limits());
    (command, setting, option::of(session)).prop_map(
        |((argv, env, env_clear, cwd), (user, stdin, tty, limits), session)| ExecRequest {
            argv,
            env,
            env_clear,
            cwd,
            user,
            stdin,
            tty,
            limits,
            session,
        },
    )
}

fn limits() -> impl Strategy<Value = Limits> {
    let number = || option::of(any::<u64>());
    (number(), number(), number(), option::of(any::<i32>()), number(), number(), number(), number()).prop_map(
        |(cpu_ms, wall_ms, grace_ms, stop_signal, memory_bytes, pids, output_bytes, files)| Limits {
            cpu_ms,
            wall_ms,
            grace_ms,
            stop_signal,
            memory_bytes,
            pids,
            output_bytes,
            files,
        },
    )
}

fn forward() -> impl Strategy<Value = ForwardRequest> {
    prop_oneof![
        (name(), any::<u16>()).prop_map(|(host, port)| ForwardRequest::Tcp { host, port }),
        text().prop_map(|path| ForwardRequest::Unix { path }),
    ]
}

fn sessions() -> impl Strategy<Value = SessionsRequest> {
    prop_oneof![
        Just(SessionsRequest::List),
        (name(), code()).prop_map(|(session, signal)| SessionsRequest::Kill { session, signal }),
        (name(), name()).prop_map(|(session, token)| SessionsRequest::Detach { session, token }),
    ]
}

fn files() -> impl Strategy<Value = FilesRequest> {
    (option::of(text()), file_request()).prop_map(|(jail, request)| FilesRequest { jail, request })
}

fn owner() -> impl Strategy<Value = Owner> {
    (any::<u32>(), any::<u32>()).prop_map(|(uid, gid)| Owner { uid, gid })
}

fn file_request() -> impl Strategy<Value = FileRequest> {
    let range = prop_oneof![
        (any::<i64>(), option::of(any::<i64>())).prop_map(|(offset, limit)| ReadRange::Bytes { offset, limit }),
        (any::<i64>(), option::of(any::<i64>()), option::of(any::<i64>()))
            .prop_map(|(offset_line, limit_lines, max_bytes)| ReadRange::Lines { offset_line, limit_lines, max_bytes }),
    ];
    let mode = select(&[WriteMode::Replace, WriteMode::Exclusive][..]);
    let permissions = || option::of(any::<u32>());
    prop_oneof![
        (text(), range).prop_map(|(path, range)| FileRequest::Read { path, range }),
        (text(), mode, permissions(), option::of(owner()))
            .prop_map(|(path, mode, permissions, owner)| FileRequest::Write { path, mode, permissions, owner }),
        text().prop_map(|path| FileRequest::Append { path }),
        (text(), any::<bool>()).prop_map(|(path, follow)| FileRequest::Stat { path, follow }),
        (text(), option::of(text()), option::of(any::<u32>())).prop_map(|(path, after, limit)| FileRequest::List {
            path,
            after,
            limit
        }),
        (text(), any::<bool>(), permissions()).prop_map(|(path, parents, permissions)| FileRequest::Mkdir {
            path,
            parents,
            permissions
        }),
        (text(), any::<bool>()).prop_map(|(path, recursive)| FileRequest::Remove { path, recursive }),
        (text(), text()).prop_map(|(from, to)| FileRequest::Rename { from, to }),
        (text(), text()).prop_map(|(from, to)| FileRequest::Copy { from, to }),
        (text(), text()).prop_map(|(target, path)| FileRequest::Symlink { target, path }),
        (text(), any::<u32>()).prop_map(|(path, permissions)| FileRequest::Chmod { path, permissions }),
        (text(), owner()).prop_map(|(path, owner)| FileRequest::Chown { path, owner }),
        text().prop_map(|path| FileRequest::TarIn { path }),
        text().prop_map(|path| FileRequest::TarOut { path }),
        Just(FileRequest::Changes {}),
    ]
}

fn answer() -> impl Strategy<Value = Message<'static>> {
    let status = prop_oneof![code().prop_map(ExitStatus::Code), code().prop_map(ExitStatus::Signal)];
    let times = (any::<u64>(), any::<u64>(), any::<u64>(), any::<u64>());
    let flags = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>());
    let exited =
        (status, times, flags).prop_map(
            |(status, (wall_us, user_us, sys_us, max_rss_bytes), (oom_killed, timed_out, truncated, pipes_held))| {
                Exited { status, wall_us, user_us, sys_us, max_rss_bytes, oom_killed, timed_out, truncated, pipes_held }
            },
        );
    let fault = || (select(ErrorCode::ALL), name()).prop_map(|(code, message)| Fault { code, message });
    let counts = (any::<u64>(), any::<u64>(), any::<bool>(), any::<u64>());
    let done = (counts, vec(fault(), 0..4)).prop_map(|((bytes, entries, truncated, left_out_more), left_out)| Done {
        bytes,
        entries,
        truncated,
        left_out,
        left_out_more,
    });
    prop_oneof![
        (any::<u32>(), option::of(name())).prop_map(|(pid, session)| Message::Started(Started { pid, session })),
        reply().prop_map(|reply| Message::Reply(Box::new(reply))),
        exited.prop_map(Message::Exited),
        done.prop_map(Message::Done),
        fault().prop_map(Message::Error),
    ]
}

fn file_kind() -> impl Strategy<Value = FileKind> {
    use FileKind::{BlockDevice, CharDevice, Directory, Fifo, File, Socket, Symlink};
    select(&[File, Directory, Symlink, CharDevice, BlockDevice, Fifo, Socket][..])
}

fn reply() -> impl Strategy<Value = Reply> {
    let attached = (name(), any::<u64>(), any::<bool>(), any::<u32>())
        .prop_map(|(token, offset, lost, pid)| Attached { token, offset, lost, pid });
    let stat = (
        file_kind(),
        (any::<u64>(), any::<u64>(), any::<u64>(), any::<i64>()),
        any::<u32>(),
        owner(),
        option::of(text()),
    )
        .prop_map(|(kind, (size, links, inode, modified_ns), permissions, owner, target)| FileStat {
            kind,
            size,
            permissions,
            owner,
            modified_ns,
            links,
            inode,
            target,
        });
    let entry = (text(), file_kind(), any::<u64>()).prop_map(|(name, kind, size)| Entry { name, kind, size });
    let page = (vec(entry, 0..6), option::of(text())).prop_map(|(entries, next)| ListPage { entries, next });
    let change = select(
        &[
            WatchEventKind::Created,
            WatchEventKind::Modified,
            WatchEventKind::Removed,
            WatchEventKind::Attributes,
            WatchEventKind::Overflow,
        ][..],
    );
    prop_oneof![
        attached.prop_map(Reply::Attached),
        (any::<u64>(), any::<u64>()).prop_map(|(from, to)| Reply::Lagged(Lagged { from, to })),
        vec(session_info(), 0..4).prop_map(Reply::Sessions),
        stat.prop_map(Reply::Stat),
        page.prop_map(Reply::Page),
        Just(Reply::Connected),
        sample().prop_map(|sample| Reply::Sample(Box::new(sample))),
        Just(Reply::Watching),
        (change, text()).prop_map(|(change, path)| Reply::Changed(WatchEvent { change, path })),
        activity().prop_map(|activity| Reply::Activity(Box::new(activity))),
    ]
}

fn session_info() -> impl Strategy<Value = SessionInfo> {
    let state = prop_oneof![Just(SessionState::Running), code().prop_map(|code| SessionState::Exited { code })];
    ((name(), name(), state), (any::<u32>(), any::<u32>()), any::<bool>(), (any::<u64>(), any::<u64>(), any::<u64>()))
        .prop_map(|((name, command, state), (pid, attached), tty, (offset, oldest, idle_ms))| SessionInfo {
            name,
            command,
            pid,
            state,
            tty,
            attached,
            offset,
            oldest,
            idle_ms,
        })
}

fn sample() -> impl Strategy<Value = MetricsSample> {
    let usage = (any::<u32>(), option::of(name()), any::<u64>(), any::<u64>(), any::<u64>()).prop_map(
        |(pid, session, cpu_us, memory_bytes, pids)| CgroupUsage { pid, session, cpu_us, memory_bytes, pids },
    );
    (vec(any::<u64>(), 8), any::<u32>(), vec(usage, 0..4)).prop_map(|(number, cpus, execs)| MetricsSample {
        uptime_ms: number[0],
        cpu_busy_ms: number[1],
        cpus,
        memory_total_bytes: number[2],
        memory_available_bytes: number[3],
        disk_total_bytes: number[4],
        disk_free_bytes: number[5],
        load_1m_percent: number[6],
        agent_rss_bytes: number[7],
        execs,
    })
}

fn activity() -> impl Strategy<Value = Activity> {
    let lease = (name(), any::<u64>()).prop_map(|(name, expires_in_ms)| Lease { name, expires_in_ms });
    let counts = (any::<u32>(), any::<u32>(), any::<u32>());
    ((any::<u64>(), any::<u64>()), counts, vec(name(), 0..4), vec(lease, 0..4)).prop_map(
        |((uptime_ms, cpu_busy_ms), (execs, watches, forwards), sessions, leases)| Activity {
            uptime_ms,
            cpu_busy_ms,
            execs,
            sessions,
            watches,
            forwards,
            leases,
        },
    )
}

fn control() -> impl Strategy<Value = Message<'static>> {
    prop_oneof![
        Just(Message::Cancel),
        Just(Message::Eof),
        any::<u32>().prop_map(Message::Credit),
        code().prop_map(|signal| Message::Signal(Signal { signal })),
        (characters(), characters()).prop_map(|(rows, cols)| Message::Resize(Resize { rows, cols })),
    ]
}
