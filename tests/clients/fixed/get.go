// Prints what an https:// address answers, with net/http as it is.
package main

import (
	"io"
	"net/http"
	"os"
)

func main() {
	answer, err := http.Get(os.Args[1])
	if err != nil {
		panic(err)
	}
	if _, err := io.Copy(os.Stdout, answer.Body); err != nil || answer.StatusCode != 200 {
		os.Exit(1)
	}
}
