//! Where things are on the server. `{id}` stands for a sandbox's id.

/// Every path of this version starts here.
pub const V1: &str = "/v1";
/// The sandboxes: `GET` lists them, `POST` starts one.
pub const SANDBOXES: &str = "/v1/sandboxes";
/// One sandbox.
pub const SANDBOX: &str = "/v1/sandboxes/{id}";
/// Runs a command in a sandbox.
pub const SANDBOX_EXEC: &str = "/v1/sandboxes/{id}/exec";

/// The header that names a request, in the answer and in the server's log.
pub const REQUEST_ID_HEADER: &str = "x-request-id";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_belongs_to_the_version() {
        for path in [SANDBOXES, SANDBOX, SANDBOX_EXEC] {
            assert!(path.strip_prefix(V1).is_some_and(|rest| rest.starts_with('/')), "{path}");
        }
    }

    #[test]
    fn header_names_are_in_lower_case_as_http_2_sends_them() {
        assert_eq!(REQUEST_ID_HEADER, REQUEST_ID_HEADER.to_ascii_lowercase());
    }
}
