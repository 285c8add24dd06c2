//! Freezing without control groups: the agent reports that it can't, and continues.

use kiln_e2e::{Agent, bounded};
use kiln_wire::ErrorCode;

use crate::common::{code, stdout};

#[test]
fn nothing_is_frozen_without_control_groups() {
    bounded(async {
        let (_agent, link) = Agent::linked().await;
        assert_eq!(code(link.freeze().await), ErrorCode::Unsupported);
        assert_eq!(stdout(&link, "echo on").await, "on\n");
    });
}

#[test]
fn thawing_what_is_not_frozen_changes_nothing() {
    bounded(async {
        let (_agent, link) = Agent::linked().await;
        for _ in 0..2 {
            link.thaw().await.expect("there is nothing to do");
        }
        assert_eq!(stdout(&link, "echo on").await, "on\n");
    });
}
