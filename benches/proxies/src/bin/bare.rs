//! The bare proxy with the system's allocator.

fn main() {
    tower_auth_refresh_proxies::serve();
}
