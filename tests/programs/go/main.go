// An ordinary Go server: net/http, goroutines, timers, maps and garbage collection, a nil dereference that
// becomes a panic, and a loop that never yields.
package main

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"runtime"
	"sync"
	"time"
)

type point struct{ x int }

func main() {
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "hello from Go %s\n", r.URL.Path)
	})
	http.HandleFunc("/goroutines", func(w http.ResponseWriter, r *http.Request) {
		var group sync.WaitGroup
		results := make(chan int, 10)
		for i := 0; i < 200; i++ {
			group.Add(1)
			go func(i int) {
				defer group.Done()
				time.Sleep(time.Duration(i%5) * time.Millisecond)
				results <- i
			}(i)
		}
		go func() { group.Wait(); close(results) }()
		sum := 0
		for i := range results {
			sum += i
		}
		fmt.Fprintln(w, sum)
	})
	http.HandleFunc("/gc", func(w http.ResponseWriter, r *http.Request) {
		kept := map[int][]byte{}
		for i := 0; i < 20000; i++ {
			kept[i%500] = make([]byte, 4096)
			kept[i%500][i%4096] = byte(i)
		}
		runtime.GC()
		sum := 0
		for _, bytes := range kept {
			for _, b := range bytes {
				sum += int(b)
			}
		}
		fmt.Fprintln(w, len(kept), sum)
	})
	http.HandleFunc("/timers", func(w http.ResponseWriter, r *http.Request) {
		start := time.Now()
		ticker := time.NewTicker(2 * time.Millisecond)
		for i := 0; i < 3; i++ {
			<-ticker.C
		}
		select {
		case <-time.After(3 * time.Millisecond):
		}
		took := time.Since(start)
		fmt.Fprintln(w, took >= 9*time.Millisecond && took < 2*time.Second, time.Now().Year() >= 2024)
	})
	http.HandleFunc("/nil", func(w http.ResponseWriter, r *http.Request) {
		defer func() { fmt.Fprintln(w, "recovered:", recover()) }()
		var nothing *point
		fmt.Fprintln(w, nothing.x)
	})
	http.HandleFunc("/tight", func(w http.ResponseWriter, r *http.Request) {
		go func() {
			for {
			}
		}()
		time.Sleep(10 * time.Millisecond)
		fmt.Fprintln(w, "went on")
	})
	http.HandleFunc("/echo", func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		w.Write(body)
	})
	port := os.Getenv("PORT")
	if port == "" {
		port = "8080"
	}
	fmt.Fprintln(os.Stderr, http.ListenAndServe(":"+port, nil))
	os.Exit(1)
}
