// Ends its side of a connection within TLS behind the request (RFC 8446, section 6.1): `end half URL` prints the
// answer all the same, `end whole URL` closes the connection and waits for the end of standard input.
package main

import (
	"bufio"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
)

func main() {
	target, err := url.Parse(os.Args[2])
	check(err)
	proxy, err := url.Parse(os.Getenv("HTTPS_PROXY"))
	check(err)
	plain, err := net.Dial("tcp", proxy.Host)
	check(err)
	credential := base64.StdEncoding.EncodeToString([]byte(proxy.User.String()))
	fmt.Fprintf(plain, "CONNECT %s HTTP/1.1\r\nHost: %s\r\nProxy-Authorization: Basic %s\r\n\r\n",
		target.Host, target.Host, credential)
	answer, err := http.ReadResponse(bufio.NewReader(plain), &http.Request{Method: "CONNECT"})
	check(err)
	if answer.StatusCode != 200 {
		panic(answer.Status)
	}
	secure := tls.Client(plain, &tls.Config{ServerName: target.Hostname()})
	fmt.Fprintf(secure, "GET %s HTTP/1.1\r\nHost: %s\r\n\r\n", target.RequestURI(), target.Host)
	if os.Args[1] == "whole" {
		fmt.Println("asked")
		bufio.NewReader(os.Stdin).ReadString('\n')
		check(secure.Close())
		fmt.Println("closed")
		io.Copy(io.Discard, os.Stdin)
		return
	}
	check(secure.CloseWrite())
	answer, err = http.ReadResponse(bufio.NewReader(secure), nil)
	check(err)
	_, err = io.Copy(os.Stdout, answer.Body)
	check(err)
}

func check(err error) {
	if err != nil {
		panic(err)
	}
}
