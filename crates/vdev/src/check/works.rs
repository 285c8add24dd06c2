//! Whether a backend still works after something hostile: a new client has one request done on new rings.
//!
//! A reply to GET_FEATURES proves little: a thread that serves a ring may have died while the one that reads messages
//! lives. So a request is made that each device of the kind has to finish. Only what a backend could do before
//! anything hostile was sent to it is required of it: kinds without such a request, and backends that do not finish
//! it, have their ring started and stopped.

use super::case::{Allowed, Need};
use super::context::{Context, USUAL, negotiate, usual_features};
use super::guest::Guest;
use super::link::{Link, SharedTrace};
use super::outcome::{Outcome, Stop};
use super::request::Request;
use super::ring::SplitRing;
use crate::protocol::frontend::SetFeatures;

/// Descriptors of each ring.
const ENTRIES: u16 = 64;

/// What a new client's ring can be used for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum RingCheck {
    /// Nothing that worked before.
    #[default]
    Nothing,
    /// To start and to stop.
    Starts,
    /// To finish a request.
    Requests,
}

/// What this backend can do now, before any hostile case.
pub(super) fn before_harm(context: &mut Context<'_>, allowed: Allowed) -> RingCheck {
    if context.facts.ends_with_client {
        return RingCheck::Nothing;
    }
    let lacks = Need::Request.lack(context.facts, context.device, context.target, allowed);
    let checks = [RingCheck::Requests, RingCheck::Starts].into_iter().skip(usize::from(lacks.is_some()));
    let mut working = checks.filter(|check| attempt(context, *check).is_ok());
    working.next().unwrap_or_default()
}

/// A new client is served, and its ring does what one did before.
pub(super) fn still_works(context: &mut Context<'_>) -> Outcome {
    if context.facts.rings == RingCheck::Nothing {
        return context.connect_again().map(drop);
    }
    context.note("a new client checks that its ring is served");
    let afterwards = |words| format!("afterwards, on a ring of a new client: {words}");
    attempt(context, context.facts.rings).map_err(|stop| match stop {
        Stop::Fail(words) => Stop::Fail(afterwards(words)),
        Stop::Closed(words) => Stop::Closed(afterwards(words)),
        Stop::Hang(words) => Stop::Hang(afterwards(words)),
        skip @ Stop::Skip(_) => skip,
    })
}

fn attempt(context: &mut Context<'_>, check: RingCheck) -> Outcome {
    // Its messages are not those of the case, so they have a trace of their own: the last words of the case stay what they are.
    let mut link = Link::new(context.target.connect_served()?, SharedTrace::default());
    negotiate(&mut link, USUAL)?;
    let features = usual_features(link.offered);
    link.require(&SetFeatures(features), &[])?;
    let mut guest = Guest::new()?;
    guest.share(&mut link)?;
    let request = context.device.and_then(|device| Request::of(device, context.facts));
    let request = request.filter(|_| check == RingCheck::Requests);
    // Some devices do nothing before all rings up to the one of requests run.
    let rings = (0..=request.as_ref().map_or(0, |request| request.queue)).map(|index| {
        let ring = SplitRing::new(&mut guest, index, ENTRIES)?;
        ring.start(&mut link)?;
        Ok(ring)
    });
    let mut rings = rings.collect::<Outcome<Vec<_>>>()?;
    if let (Some(request), Some(ring)) = (request, rings.last_mut()) {
        // A request that is in a ring when it is enabled is served without a kick, so only the second one proves that
        // kicks are seen.
        for head in [0, 2] {
            ring.send(head, &request.in_two(&mut guest))?;
            ring.wait_used(&mut link, context.timeout())?;
        }
    }
    rings.iter().try_for_each(|ring| ring.stop(&mut link).map(drop))
}
