// A tour of logmesh from Go: makes a rule, watches the fleet, writes events, tails them and finds them.
//
// Usage: example [HOST:PORT]. The exit code is 0 only if all that was written was tailed and found.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	configv1 "logmesh/clients/gen/logmesh/config/v1"
	fleetv1 "logmesh/clients/gen/logmesh/fleet/v1"
	ingestv1 "logmesh/clients/gen/logmesh/ingest/v1"
	searchv1 "logmesh/clients/gen/logmesh/search/v1"
)

const (
	topic = "examples"
	// How long one call may take, and how long a stream is followed or events are searched for.
	callTime, streamTime = 10 * time.Second, time.Minute
)

func main() {
	address := "127.0.0.1:7400"
	if len(os.Args) > 1 {
		address = os.Args[1]
	}
	if err := run(address); err != nil {
		fmt.Fprintln(os.Stderr, explain(err))
		os.Exit(1)
	}
}

func run(address string) error {
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	tour := tour{
		rules:    configv1.NewRuleServiceClient(conn),
		fleet:    fleetv1.NewFleetServiceClient(conn),
		ingest:   ingestv1.NewIngestServiceClient(conn),
		search:   searchv1.NewSearchServiceClient(conn),
		run:      fmt.Sprintf("%08x", rand.Uint32()),
		messages: []string{"hello 0 from Go", "hello 1 from Go", "hello 2 from Go"},
	}
	return tour.take(context.Background())
}

// explain gives code and text of what a server refused, its stable reason, and the path of each field to correct.
func explain(err error) string {
	lines := []string{err.Error()}
	for _, detail := range status.Convert(err).Details() {
		switch detail := detail.(type) {
		case *errdetails.BadRequest:
			for _, violation := range detail.GetFieldViolations() {
				lines = append(lines, fmt.Sprintf("  %s: %s", violation.GetField(), violation.GetDescription()))
			}
		case *errdetails.ErrorInfo:
			lines = append(lines, "  reason: "+detail.GetReason())
		}
	}
	return strings.Join(lines, "\n")
}

type tour struct {
	rules    configv1.RuleServiceClient
	fleet    fleetv1.FleetServiceClient
	ingest   ingestv1.IngestServiceClient
	search   searchv1.SearchServiceClient
	run      string
	messages []string
}

func (t *tour) take(ctx context.Context) (err error) {
	if err := t.showRefusal(ctx); err != nil {
		return err
	}
	rule, err := t.makeRule(ctx)
	if err != nil {
		return err
	}
	defer func() {
		if failed := t.removeRule(ctx, rule); err == nil {
			err = failed
		}
	}()
	if err := t.watchFleet(ctx); err != nil {
		return err
	}
	if err := t.writeAndTail(ctx); err != nil {
		return err
	}
	return t.find(ctx)
}

func (t *tour) showRefusal(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	bad := &configv1.Rule{Name: "rules/bad", Paths: []string{"not/absolute"}, Topic: topic}
	_, err := t.rules.CreateRule(ctx, &configv1.CreateRuleRequest{Rule: bad, ValidateOnly: true})
	if status.Code(err) != codes.InvalidArgument {
		return err
	}
	fmt.Println("refused, as it should be:", explain(err))
	return nil
}

func (t *tour) makeRule(ctx context.Context) (*configv1.Rule, error) {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	// It selects agents with a label that none is likely to have, so that nobody's files are collected by an example.
	rule, err := t.rules.CreateRule(ctx, &configv1.CreateRuleRequest{Rule: &configv1.Rule{
		Name:     "rules/example-" + t.run,
		Selector: "example=" + t.run,
		Paths:    []string{"/var/log/example/*.log"},
		Topic:    topic,
	}})
	if err == nil {
		fmt.Printf("made %s, revision %d\n", rule.GetName(), rule.GetRevision())
	}
	return rule, err
}

func (t *tour) removeRule(ctx context.Context, rule *configv1.Rule) error {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	_, err := t.rules.DeleteRule(ctx, &configv1.DeleteRuleRequest{Name: rule.GetName(), Etag: rule.GetEtag()})
	if err == nil {
		fmt.Println("removed", rule.GetName())
	}
	return err
}

// watchFleet prints all agents. The stream would go on with each change; it's cancelled once all were told.
func (t *tour) watchFleet(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, streamTime)
	defer cancel()
	updates, err := t.fleet.WatchAgents(ctx, &fleetv1.WatchAgentsRequest{})
	if err != nil {
		return err
	}
	for {
		update, err := updates.Recv()
		if err != nil {
			return err
		}
		for _, agent := range update.GetAgents() {
			state := map[bool]string{true: "online", false: "offline"}[agent.GetOnline()]
			fmt.Printf("agent %s: %s, %d rules\n", agent.GetId(), state, len(agent.GetRules()))
		}
		if update.GetComplete() {
			return nil
		}
	}
}

func (t *tour) writeAndTail(ctx context.Context) error {
	tailing, cancel := context.WithTimeout(ctx, streamTime)
	defer cancel()
	tail, err := t.search.Tail(tailing, &searchv1.TailRequest{Query: t.query(), Topics: []string{topic}})
	if err != nil {
		return err
	}
	// Once the header is here, the tail shows all that is written from now on.
	if _, err := tail.Header(); err != nil {
		return err
	}
	if err := t.write(ctx); err != nil {
		return err
	}
	for missing := t.all(); len(missing) > 0; {
		response, err := tail.Recv()
		if err != nil {
			return err
		}
		if err := show("tailed", response.GetHits(), missing); err != nil {
			return err
		}
	}
	return nil
}

func (t *tour) write(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	request := &ingestv1.WriteRequest{Topic: topic}
	for number, message := range t.messages {
		request.Events = append(request.Events, &ingestv1.Event{
			// With an id of its own an event may be sent again, after UNAVAILABLE say, and is still one document.
			EventId: fmt.Sprintf("%s-%d", t.run, number),
			Message: message,
			Level:   "INFO",
			Service: "example",
			Labels:  map[string]string{"run": t.run},
		})
	}
	written, err := t.ingest.Write(ctx, request)
	if err == nil {
		fmt.Printf("wrote %d events\n", len(written.GetPositions()))
	}
	return err
}

// find searches until all messages are there: the index has them a moment after the bus.
func (t *tour) find(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, streamTime)
	defer cancel()
	for {
		answer, err := t.search.Search(ctx, &searchv1.SearchRequest{Query: t.query(), Topics: []string{topic}})
		if err != nil {
			return err
		}
		if answer.GetTotal() >= uint64(len(t.messages)) {
			missing := t.all()
			if err := show("found", answer.GetHits(), missing); err != nil || len(missing) == 0 {
				return err
			}
			return fmt.Errorf("not found: %v", missing)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("only %d of %d events were found", answer.GetTotal(), len(t.messages))
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func (t *tour) query() string { return "labels.run:" + t.run }

func (t *tour) all() map[string]bool {
	all := map[string]bool{}
	for _, message := range t.messages {
		all[message] = true
	}
	return all
}

// show prints the hits' messages and takes them from those that are missing. A document is JSON with flat names.
func show(what string, hits []*searchv1.Hit, missing map[string]bool) error {
	for _, hit := range hits {
		var document struct{ Message string }
		if err := json.Unmarshal([]byte(hit.GetDocument()), &document); err != nil {
			return fmt.Errorf("document %s: %w", hit.GetId(), err)
		}
		fmt.Printf("%s: %s\n", what, document.Message)
		delete(missing, document.Message)
	}
	return nil
}
