//! The bare proxy with the gateway's allocator.

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    tower_auth_refresh_proxies::serve();
}
