//! The paths of the server. `{id}` is the id of a sandbox.

/// The prefix of every path of this version.
pub const V1: &str = "/v1";
/// The sandboxes: `GET` lists them, `POST` starts one.
pub const SANDBOXES: &str = "/v1/sandboxes";
/// One sandbox.
pub const SANDBOX: &str = "/v1/sandboxes/{id}";
/// Runs a command in a sandbox.
pub const SANDBOX_EXEC: &str = "/v1/sandboxes/{id}/exec";

/// The header with the id of a request, which is also in the server's log.
pub const REQUEST_ID_HEADER: &str = "x-request-id";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_has_the_prefix_of_its_version() {
        for path in [SANDBOXES, SANDBOX, SANDBOX_EXEC] {
            assert!(path.strip_prefix(V1).is_some_and(|rest| rest.starts_with('/')), "{path}");
        }
    }

    #[test]
    fn header_names_are_in_lower_case_as_http_2_sends_them() {
        assert_eq!(REQUEST_ID_HEADER, REQUEST_ID_HEADER.to_ascii_lowercase());
    }
}
