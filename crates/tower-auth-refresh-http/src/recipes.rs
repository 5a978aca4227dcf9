//! Settings for the refresh calls of well-known providers.
