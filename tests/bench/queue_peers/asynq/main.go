// asynq as a peer of the queue: N empty tasks of 100 bytes, enqueued by as many goroutines as there are
// workers (asynq has no bulk enqueue), and done by one server.
//
//	go run . REDIS_PORT JOBS CONCURRENCY
//
// Prints one line of JSON: seconds to enqueue all, and from the first task's enqueueing to the last one's end.
package main

import (
	"bytes"
	"context"
	"fmt"
	"log"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hibiken/asynq"
)

func number(i int) int {
	n, err := strconv.Atoi(os.Args[i])
	if err != nil {
		log.Fatal(err)
	}
	return n
}

func main() {
	port, jobs, concurrency := number(1), number(2), number(3)
	redis := asynq.RedisClientOpt{Addr: fmt.Sprintf("127.0.0.1:%d", port)}
	client := asynq.NewClient(redis)
	payload := bytes.Repeat([]byte("x"), 100)
	var done, taken atomic.Int64
	all := make(chan struct{})

	server := asynq.NewServer(redis, asynq.Config{Concurrency: concurrency, LogLevel: asynq.FatalLevel})
	handler := asynq.HandlerFunc(func(context.Context, *asynq.Task) error {
		if done.Add(1) == int64(jobs) {
			close(all)
		}
		return nil
	})
	if err := server.Start(handler); err != nil {
		log.Fatal(err)
	}

	begin := time.Now()
	var wait sync.WaitGroup
	for range concurrency {
		wait.Add(1)
		go func() {
			defer wait.Done()
			for taken.Add(1) <= int64(jobs) {
				if _, err := client.Enqueue(asynq.NewTask("t", payload), asynq.Retention(time.Hour)); err != nil {
					log.Fatal(err)
				}
			}
		}()
	}
	wait.Wait()
	added := time.Since(begin)
	<-all
	fmt.Printf("{\"add_s\": %f, \"all_s\": %f}\n", added.Seconds(), time.Since(begin).Seconds())
	server.Shutdown()
}
