//! Streams and links that end at any moment, in any way, while tasks wait on them: no task is left waiting.
//!
//! A property: a script of what the agent and the users of a link do, then an end of the link. After the end of a
//! stream all its users continue, while the link is still up. After the end of the link all users continue. No deadline
//! of the product hides a wait: the shortest is ten seconds, and this test waits half of that.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use kiln_engine::link::{GuestLink, StreamReceiver, StreamSender};
use kiln_wire::PAYLOAD_MAX;
use kiln_wire::credit::WINDOW_BYTES;
use kiln_wire::{Channel, Done, ErrorCode, ExecRequest, Fault, Goodbye, GoodbyeReason, Kind, Message, Started, Sync};
use proptest::collection::vec;
use proptest::prelude::*;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::{JoinHandle, yield_now};
use tokio::time::timeout;

use crate::peer::{Peer, linked};

/// Half of the product's own deadline for an answer.
const WAIT_MAX: Duration = Duration::from_secs(5);
/// More than any window.
const UPLOAD_BYTES: usize = 3 << 20;
/// Enough for the host's tasks to handle what they were given.
const TURNS: usize = 20;

/// A task that waits on a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum User {
    /// Sends without end, and the other half is not read.
    Sender,
    /// Reads without end, and holds the other half.
    Receiver,
    /// Sends the end of the data, behind another sender.
    SenderThenEof,
    /// `GuestLink::run` with input.
    Run,
    WriteFile,
    ReadFile,
    Sync,
    Freeze,
    Activity,
}

/// What the agent sends on a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Word {
    Started,
    Data,
    EmptyData,
    Credit,
    /// From here on, each of these ends the stream.
    Done,
    Fault,
    Overrun,
    Malformed,
    WrongKind,
    EndlessAnswers,
}

impl Word {
    fn ends(self) -> bool {
        !matches!(self, Self::Started | Self::Data | Self::EmptyData | Self::Credit)
    }
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Open(User),
    /// The agent sends this on one of the open streams.
    Say(prop::sample::Index, Word),
    /// The agent reads some of the bytes that wait for it.
    Read,
    /// A user is dropped.
    Drop(prop::sample::Index),
    /// A stream is cancelled.
    Cancel(prop::sample::Index),
    /// A task requests an echo, which the agent never sends.
    Ping,
}

/// How the link ends.
#[derive(Debug, Clone, Copy)]
enum End {
    Closed,
    Goodbye,
    BadLength,
    LongPing,
    /// More control frames than an agent may leave unread.
    ControlOverflow,
    /// The last handle is dropped, after the tasks that hold one.
    LastHandle,
}

fn users() -> impl Strategy<Value = User> {
    prop::sample::select(vec![
        User::Sender,
        User::Receiver,
        User::SenderThenEof,
        User::Run,
        User::WriteFile,
        User::ReadFile,
        User::Sync,
        User::Freeze,
        User::Activity,
    ])
}

fn words() -> impl Strategy<Value = Word> {
    prop::sample::select(vec![
        Word::Started,
        Word::Data,
        Word::EmptyData,
        Word::Credit,
        Word::Done,
        Word::Fault,
        Word::Overrun,
        Word::Malformed,
        Word::WrongKind,
        Word::EndlessAnswers,
    ])
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => users().prop_map(Step::Open),
        6 => (any::<prop::sample::Index>(), words()).prop_map(|(index, word)| Step::Say(index, word)),
        2 => Just(Step::Read),
        1 => any::<prop::sample::Index>().prop_map(Step::Drop),
        1 => any::<prop::sample::Index>().prop_map(Step::Cancel),
        1 => Just(Step::Ping),
    ];
    vec(step, 1..24)
}

fn ends() -> impl Strategy<Value = End> {
    prop::sample::select(vec![
        End::Closed,
        End::Goodbye,
        End::BadLength,
        End::LongPing,
        End::ControlOverflow,
        End::LastHandle,
    ])
}

/// A link, the tasks that wait on it, and its agent.
struct Scene {
    link: GuestLink,
    peer: Peer,
    /// By the id of their stream. Tasks that request echoes have no stream.
    users: BTreeMap<u32, (User, JoinHandle<()>)>,
    pings: Vec<JoinHandle<()>>,
    /// Halves that are held but not used.
    held: BTreeMap<u32, (Option<StreamSender>, Option<StreamReceiver>)>,
    ended: BTreeSet<u32>,
    next_id: u32,
}

impl Scene {
    async fn new() -> Self {
        let (link, peer) = linked().await;
        let (users, held) = (BTreeMap::new(), BTreeMap::new());
        Self { link, peer, users, pings: vec![], held, ended: BTreeSet::new(), next_id: 1 }
    }

    async fn open(&mut self, user: User) {
        let id = self.next_id;
        self.next_id += 2;
        let link = self.link.clone();
        let task = match user {
            User::Sender | User::Receiver | User::SenderThenEof => {
                let Ok((sender, mut receiver)) = link.open(&Message::Exec(Box::default())) else { return };
                match user {
                    User::Receiver => {
                        self.held.insert(id, (Some(sender), None));
                        tokio::spawn(async move { while receiver.next().await.is_ok() {} })
                    }
                    _ => {
                        self.held.insert(id, (Some(sender.clone()), Some(receiver)));
                        tokio::spawn(async move {
                            while user == User::Sender && sender.send(&[7; 64 << 10]).await.is_ok() {}
                            drop(sender.send(&[7; 64 << 10]).await);
                            drop(sender.eof().await);
                        })
                    }
                }
            }
            User::Run => tokio::spawn(async move {
                drop(link.run(ExecRequest::default(), &vec![7; UPLOAD_BYTES], 1 << 20).await);
            }),
            User::WriteFile => tokio::spawn(async move {
                drop(link.write_file("/f", &vec![7; UPLOAD_BYTES], None).await);
            }),
            User::ReadFile => tokio::spawn(async move { drop(link.read_file("/f", 1 << 20).await) }),
            User::Sync => tokio::spawn(async move {
                drop(
                    link.sync(Sync {
                        host_time_ns: 1,
                        seed: String::new(),
                        identity: None,
                        network: None,
                        mounts: vec![],
                    })
                    .await,
                );
            }),
            User::Freeze => tokio::spawn(async move { drop(link.freeze().await) }),
            User::Activity => tokio::spawn(async move { drop(link.activity().await) }),
        };
        self.users.insert(id, (user, task));
        turns().await;
    }

    /// One of the open streams.
    fn pick(&self, index: prop::sample::Index) -> Option<u32> {
        let ids: Vec<u32> = self.users.keys().copied().collect();
        (!ids.is_empty()).then(|| *index.get(&ids))
    }

    async fn say(&mut self, id: u32, word: Word) {
        let fault = Fault::new(ErrorCode::Io, "no");
        match word {
            Word::Started => self.send(id, &Message::Started(Started { pid: 1, session: None })).await,
            Word::Data => self.send(id, &Message::Data(Channel::Out, b"some")).await,
            Word::EmptyData => self.send(id, &Message::Data(Channel::Err, b"")).await,
            Word::Credit => self.send(id, &Message::Credit(WINDOW_BYTES)).await,
            Word::Done => self.send(id, &Message::Done(Done::default())).await,
            Word::Fault => self.send(id, &Message::Error(fault)).await,
            Word::Overrun => self.send(id, &Message::Data(Channel::Out, &vec![7; OVERRUN_BYTES])).await,
            Word::Malformed => self.send_frame(id, Kind::EXITED, b"{").await,
            Word::WrongKind => self.send(id, &Message::Cancel).await,
            Word::EndlessAnswers => {
                // A user that takes all answers finds one that can't be parsed or does not belong there.
                for _ in 0..ANSWERS {
                    self.send_frame(id, Kind::REPLY, b"").await;
                }
            }
        }
        if word.ends() {
            self.ended.insert(id);
        }
    }

    async fn send(&mut self, id: u32, message: &Message<'_>) {
        let mut frame = Vec::new();
        message.encode(kiln_wire::StreamId(id), &mut frame).expect("it fits");
        self.write(&frame).await;
    }

    async fn send_frame(&mut self, id: u32, kind: Kind, payload: &[u8]) {
        let mut frame = Vec::new();
        kiln_wire::encode(kind, kiln_wire::StreamId(id), payload, &mut frame).expect("it fits");
        self.write(&frame).await;
    }

    async fn write(&mut self, bytes: &[u8]) {
        // The host may have ended the link already, but it must not stop reading.
        let written = timeout(WAIT_MAX, self.peer.stream.write_all(bytes)).await;
        drop(written.expect("the host always reads"));
    }

    async fn read(&mut self) {
        let mut buffer = vec![0; 256 << 10];
        drop(timeout(Duration::from_millis(1), self.peer.stream.read(&mut buffer)).await);
    }

    async fn act(&mut self, step: Step) {
        match step {
            Step::Open(user) => self.open(user).await,
            Step::Read => self.read().await,
            Step::Say(index, word) => {
                if let Some(id) = self.pick(index) {
                    self.say(id, word).await;
                }
            }
            Step::Drop(index) => {
                if let Some(id) = self.pick(index) {
                    self.held.remove(&id);
                    if let Some((_, task)) = self.users.remove(&id) {
                        task.abort();
                    }
                }
            }
            Step::Cancel(index) => {
                if let Some((Some(sender), _)) = self.pick(index).and_then(|id| self.held.get(&id)) {
                    drop(sender.cancel());
                }
            }
            Step::Ping => {
                let link = self.link.clone();
                self.pings.push(tokio::spawn(async move { drop(link.ping().await) }));
                turns().await;
            }
        }
    }

    /// All users of ended streams continue, while the link is up, whether or not the agent reads.
    async fn assert_ended_streams_block_no_task(&mut self) -> Result<(), TestCaseError> {
        for id in std::mem::take(&mut self.ended) {
            if let Some((user, task)) = self.users.remove(&id) {
                prop_assert!(timeout(WAIT_MAX, task).await.is_ok(), "{user:?} waits on a stream that has ended");
            }
        }
        Ok(())
    }

    /// Ends the link. All users continue.
    async fn end(mut self, end: End) -> Result<(), TestCaseError> {
        match end {
            End::Closed => drop(self.peer),
            End::Goodbye => {
                self.send(0, &Message::Goodbye(Goodbye { reason: GoodbyeReason::Replaced })).await;
            }
            End::BadLength => self.write(&[0xff; 4]).await,
            End::LongPing => self.send(0, &Message::Ping(&[0; 2000])).await,
            End::ControlOverflow => {
                if let Ok((sender, _receiver)) = self.link.open(&Message::Exec(Box::default())) {
                    // No task of the link runs meanwhile, so it sends nothing.
                    while sender.resize(1, 1).is_ok() {}
                }
                prop_assert!(self.link.is_lost(), "a full queue ends the link");
            }
            End::LastHandle => {
                let with_handle = |user: User| !matches!(user, User::Sender | User::Receiver | User::SenderThenEof);
                for (_, task) in self.users.values().filter(|(user, _)| with_handle(*user)) {
                    task.abort();
                }
                self.pings.iter().for_each(JoinHandle::abort);
                turns().await;
                drop(self.link);
            }
        }
        for (user, task) in self.users.into_values() {
            prop_assert!(timeout(WAIT_MAX, task).await.is_ok(), "{user:?} waits on a link that has ended");
        }
        for ping in self.pings {
            prop_assert!(timeout(WAIT_MAX, ping).await.is_ok(), "a ping waits on a link that has ended");
        }
        Ok(())
    }
}

/// More than any window allows.
const OVERRUN_BYTES: usize = PAYLOAD_MAX - 5;
/// One answer more than may wait.
const ANSWERS: usize = 4097;

async fn turns() {
    for _ in 0..TURNS {
        yield_now().await;
    }
}

fn play(steps: Vec<Step>, end: End) -> Result<(), TestCaseError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let mut scene = Scene::new().await;
        for step in steps {
            scene.act(step).await;
        }
        scene.assert_ended_streams_block_no_task().await?;
        scene.end(end).await
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_task_waits_on_a_stream_or_a_link_that_has_ended(steps in steps(), end in ends()) {
        play(steps, end)?;
    }
}
