//! Images of OCI and docker: where they are, what they say, and their layers as streams whose digests are checked.
