//! Prints what an `https://` address answers: `reqwest-client rustls|openssl URL`.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let (backend, url) = (arguments.next().unwrap_or_default(), arguments.next().unwrap_or_default());
    let builder = reqwest::blocking::Client::builder().https_only(true);
    let builder = match backend.as_str() {
        "rustls" => {
            let _first = rustls::crypto::ring::default_provider().install_default();
            builder.tls_backend_rustls()
        }
        "openssl" => builder.tls_backend_native(),
        _ => return Err("usage: reqwest-client rustls|openssl URL".into()),
    };
    let answer = builder.build()?.get(url).header("Authorization", "Bearer the program's own").send()?;
    println!("{}", answer.error_for_status()?.text()?);
    Ok(())
}
