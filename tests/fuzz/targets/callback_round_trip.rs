#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| cnblogs_proxy::oauth::properties::callback_round_trip(bytes));
