//! The name by which programs find the library.

/// `JQR_ABI_VERSION` (src/status.rs).
const ABI_VERSION: u32 = 1;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("linux") {
        println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libjitquant_runtime.so.{ABI_VERSION}");
    }
}
