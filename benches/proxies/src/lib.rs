//! The cost of a request through `examples/gateway`, beside other proxies: the program `proxies` prints the table.
//!
//! The library has the proxy that is the yardstick, which the programs `bare` and `bare-mimalloc` run.

mod bare;

pub use bare::serve;
