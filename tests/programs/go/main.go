// An ordinary Go server: net/http, goroutines, timers, maps and garbage collection, a nil dereference that
// becomes a panic, a loop that never yields, signals, a large heap, the network's interfaces, and an HTTP client and a
// reverse proxy of what $UPSTREAM names.
package main

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"syscall"
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
	http.HandleFunc("/stream", func(w http.ResponseWriter, r *http.Request) {
		for i := 0; i < 20; i++ {
			fmt.Fprintf(w, "part %d\n", i)
			w.(http.Flusher).Flush()
		}
	})
	http.HandleFunc("/signal", func(w http.ResponseWriter, r *http.Request) {
		caught := make(chan os.Signal, 1)
		signal.Notify(caught, syscall.SIGUSR1)
		syscall.Kill(os.Getpid(), syscall.SIGUSR1)
		fmt.Fprintln(w, <-caught)
	})
	http.HandleFunc("/interfaces", func(w http.ResponseWriter, r *http.Request) {
		// Over netlink. Of what it finds, only loopback is the same everywhere.
		lo, err := net.InterfaceByName("lo")
		if err != nil {
			fmt.Fprintln(w, err)
			return
		}
		addresses, err := lo.Addrs()
		fmt.Fprintln(w, lo.Index, lo.MTU, lo.Flags&(net.FlagUp|net.FlagLoopback), err)
		for _, address := range addresses {
			if address.String() == "127.0.0.1/8" {
				fmt.Fprintln(w, address)
			}
		}
	})
	http.HandleFunc("/heap", func(w http.ResponseWriter, r *http.Request) {
		kept := [][]byte{}
		for i := 0; i < 60; i++ {
			kept = append(kept, make([]byte, 1<<20))
			for at := 0; at < len(kept[i]); at += 4096 {
				kept[i][at] = byte(i)
			}
		}
		sum := 0
		for _, bytes := range kept {
			sum += int(bytes[8192])
		}
		kept = nil
		debug.FreeOSMemory()
		for i := 0; i < 200; i++ {
			sum += len(make([]byte, 1<<20))
		}
		fmt.Fprintln(w, sum)
	})
	upstream := "http://" + os.Getenv("UPSTREAM")
	http.HandleFunc("/upstream", func(w http.ResponseWriter, r *http.Request) {
		report := func(answer *http.Response, err error) string {
			if err != nil {
				return err.Error()
			}
			defer answer.Body.Close()
			body, err := io.ReadAll(answer.Body)
			return fmt.Sprint(answer.StatusCode, " ", string(body), err)
		}
		for i := 0; i < 3; i++ {
			fmt.Fprintln(w, report(http.Get(upstream+"/kept")))
		}
		// Of unknown length, so in parts.
		parts := io.MultiReader(strings.NewReader(strings.Repeat("abc", 50000)), strings.NewReader("end"))
		fmt.Fprintln(w, report(http.Post(upstream+"/parts", "text/plain", parts)))
		var group sync.WaitGroup
		reports := make([]string, 8)
		for i := range reports {
			group.Add(1)
			go func(i int) {
				defer group.Done()
				reports[i] = report(http.Get(fmt.Sprint(upstream, "/", i, "/parts")))
			}(i)
		}
		group.Wait()
		fmt.Fprintln(w, reports)
	})
	if to, err := url.Parse(upstream); err == nil {
		http.Handle("/proxy/", httputil.NewSingleHostReverseProxy(to))
	}
	port := os.Getenv("PORT")
	if port == "" {
		port = "8080"
	}
	fmt.Fprintln(os.Stderr, http.ListenAndServe(":"+port, nil))
	os.Exit(1)
}
