#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| cnblogs_proxy::config::properties::misplaced_secret(bytes));
