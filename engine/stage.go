package engine

import (
	"errors"
	"fmt"

	"github.com/pembadb/pemba/graph"
)

// stage judges one step of a staged change. What it may not do is refused before
// anything is written, and no step is half done.
func (j *judgement) stage(m *graph.Mutation) (*Refusal, error) {
	bare := *m
	bare.Updates = nil
	if err := bare.Validate(); err != nil {
		return refuseMalformed("", err), nil
	}
	if m.Stage.Operation != graph.StageUpdates && len(m.Updates) > 0 {
		return refuse(Malformed, "updates", "there are %d updates, which only go with adding to a staged change", len(m.Updates)), nil
	}
	if m.Stage.Operation == graph.StageCollect {
		return nil, j.collectStages()
	}
	info, found, err := j.snapshot.graph.Stage(m.Stage.ID)
	if err != nil {
		return nil, err
	}
	switch m.Stage.Operation {
	case graph.StageUpdates:
		return j.stageUpdates(m, info, found)
	case graph.StageCommit:
		return j.stageCommit(m.Stage, info, found)
	default:
		if !found || info.Committed != 0 {
			return refuseStage(m.Stage.ID, info), nil
		}
		j.commit.Stage = &graph.StageStep{Operation: graph.StageDrop, Drop: []graph.StageID{m.Stage.ID}}
		j.result.Stage = info
		return nil, nil
	}
}

// refuseStage says that nothing is staged under an id, or no more.
func refuseStage(id graph.StageID, info graph.StageInfo) *Refusal {
	if info.Committed != 0 {
		return refuse(StageUnknown, "", "the staged change %x was committed at revision %d already; begin another one under a new id", id, info.Committed)
	}
	return refuse(StageUnknown, "", "no change is staged under %x: it was not begun with chunk 0, or was dropped, or collected after %d hours without a step",
		id, graph.StageLifetime/3600e6)
}

// stageUpdates judges updates as those of a write, but for what is stored: that
// is judged when all of them are there.
func (j *judgement) stageUpdates(m *graph.Mutation, info graph.StageInfo, found bool) (*Refusal, error) {
	chunk := m.Stage.Chunk
	switch {
	case found && chunk < info.Chunks:
		return j.stageAgain(m, info)
	case info.Committed != 0:
		return refuseMismatch(chunk, "the staged change %x was committed at revision %d with %d chunks, and chunk %d is another; use another id",
			m.Stage.ID, info.Committed, info.Chunks, chunk), nil
	case !found && chunk > 0:
		return refuseStage(m.Stage.ID, info), nil
	case chunk > info.Chunks:
		return refuse(StageGap, "", "chunk %d does not follow, for the staged change %x has %d; chunk %d is next", chunk, m.Stage.ID, info.Chunks, info.Chunks).
			with("chunks", fmt.Sprint(info.Chunks)), nil
	}
	p, err := j.snapshot.program()
	if err != nil {
		return asRefusal(err)
	}
	if !found {
		stages, err := j.snapshot.graph.Stages()
		if err != nil {
			return nil, err
		}
		if len(stages) >= graph.StagesMax {
			return refuse(StageTooLarge, "", "the store has %d staged changes, and at most %d are allowed; commit or drop one of them", len(stages), graph.StagesMax), nil
		}
		info = graph.StageInfo{ID: m.Stage.ID, Schema: p.version.Revision}
	}
	if refusal := staleStage(p, info); refusal != nil {
		return refusal, nil
	}
	if total := info.Tuples + uint64(len(m.Updates)); total > graph.StageTuplesMax {
		return refuse(StageTooLarge, "updates", "the staged change would have %d updates, and at most %d are allowed; make several", total, graph.StageTuplesMax), nil
	}
	digest := info.Digest.Next(chunk, m.Updates)
	edges := make(map[edgeKey]bool, len(m.Updates))
	for i := range m.Updates {
		u, field := &m.Updates[i], fmt.Sprintf("updates[%d]", i)
		if edges[edgeOf(&u.Tuple)] {
			return refuse(DuplicateUpdate, field+".tuple", "%s is named twice in this chunk; one change may name a tuple once",
				edgeString(&u.Tuple)).with("tuple", edgeString(&u.Tuple)), nil
		}
		edges[edgeOf(&u.Tuple)] = true
		if u.Operation != graph.Touch && u.Operation != graph.Create {
			return refuse(Malformed, field+".operation", "operation %d cannot be staged; touch and create are allowed", u.Operation), nil
		}
		if refusal := p.judgeTuple(field+".tuple", &u.Tuple); refusal != nil {
			return refusal, nil
		}
	}
	j.commit.Stage = &graph.StageStep{
		Operation: graph.StageUpdates, ID: m.Stage.ID, Chunk: chunk, Updates: m.Updates, Schema: info.Schema, Digest: digest,
	}
	info.Chunks++
	info.Tuples += uint64(len(m.Updates))
	info.Digest, info.Touched = digest, j.commit.Stamp
	j.result.Stage = info
	return nil, nil
}

// stageAgain answers a chunk that was staged before: its caller could not know
// the answer, or somebody else uses the same id. Of what was committed only the
// digest of the whole is left, and so it is the commit that compares.
func (j *judgement) stageAgain(m *graph.Mutation, info graph.StageInfo) (*Refusal, error) {
	chunk := m.Stage.Chunk
	if info.Committed == 0 {
		var before graph.StageDigest
		if chunk > 0 {
			var err error
			if before, err = j.chunkDigest(m.Stage.ID, chunk-1); err != nil {
				return nil, err
			}
		}
		staged, err := j.chunkDigest(m.Stage.ID, chunk)
		if err != nil {
			return nil, err
		}
		if before.Next(chunk, m.Updates) != staged {
			return refuseMismatch(chunk, "the staged change %x has other updates in chunk %d; use another id", m.Stage.ID, chunk), nil
		}
		info.Digest = staged
	}
	j.result.Stage = info
	return nil, nil
}

// chunkDigest returns the digest of a staged change behind a chunk that it has.
func (j *judgement) chunkDigest(id graph.StageID, chunk uint32) (graph.StageDigest, error) {
	digest, ok, err := j.snapshot.graph.StageDigest(id, chunk)
	if err == nil && !ok {
		err = fmt.Errorf("the staged change %x lacks the digest of chunk %d", id, chunk)
	}
	return digest, err
}

// refuseMismatch says that an id stands for other updates.
func refuseMismatch(chunk uint32, format string, args ...any) *Refusal {
	return refuse(StageMismatch, "", format, args...).with("chunk", fmt.Sprint(chunk))
}

// staleStage refuses updates that were judged by another schema than that in
// force.
func staleStage(p *program, info graph.StageInfo) *Refusal {
	if info.Schema == p.version.Revision {
		return nil
	}
	return refuse(StageStale, "", "the change was staged under the schema of revision %d, and that of revision %d is in force; drop it and stage it again",
		info.Schema, p.version.Revision)
}

// refuseStagedTwice says which update the graph found to be staged already; nil
// when err says something else.
func refuseStagedTwice(m *graph.Mutation, err error) *Refusal {
	var twice *graph.StagedTwiceError
	if !errors.As(err, &twice) {
		return nil
	}
	edge := edgeString(&m.Updates[twice.Index].Tuple)
	return refuse(DuplicateUpdate, fmt.Sprintf("updates[%d].tuple", twice.Index), "%s is named in an earlier chunk already; one change may name a tuple once", edge).
		with("tuple", edge)
}

// stageCommit judges a staged change as a whole, against what is stored now.
func (j *judgement) stageCommit(s *graph.Stage, info graph.StageInfo, found bool) (*Refusal, error) {
	step := &graph.StageStep{Operation: graph.StageCommit, ID: s.ID}
	if revision, verdict := j.snapshot.graph.UnfinishedStage(); revision == j.commit.Revision {
		// A crash cut this very entry short. It was judged before its first
		// change, and what is stored now is no longer what it was judged against.
		step.Verdict = verdict
	} else {
		if !found {
			return refuseStage(s.ID, info), nil
		}
		if info.Committed != 0 && (s.Chunk != info.Chunks || otherDigest(s, info)) {
			return refuse(StageMismatch, "", "the staged change %x was committed at revision %d with other updates, in %d chunks; use another id",
				s.ID, info.Committed, info.Chunks), nil
		}
		if s.Chunk != info.Chunks {
			return refuse(StageGap, "", "the staged change %x has %d chunks, and %d are said to be in it", s.ID, info.Chunks, s.Chunk).
				with("chunks", fmt.Sprint(info.Chunks)), nil
		}
		if info.Committed != 0 {
			// Asked again, for the caller could not know the answer.
			j.result.Stage, j.result.Changed = info, int(info.Changed)
			return nil, nil
		}
		if otherDigest(s, info) {
			return refuse(StageMismatch, "", "the staged change %x has other updates in one of its %d chunks; use another id", s.ID, info.Chunks), nil
		}
		p, err := j.snapshot.program()
		if err != nil {
			return asRefusal(err)
		}
		if refusal := staleStage(p, info); refusal != nil {
			return refusal, nil
		}
		if step.Verdict, err = j.snapshot.graph.JudgeStage(s.ID); err != nil {
			return nil, err
		}
		if t := step.Verdict.Conflict; t != nil {
			return refuse(AlreadyExists, "", "%s exists and was staged to be created; touch it to replace what it carries", edgeString(t)).
				with("tuple", edgeString(t)), nil
		}
	}
	j.commit.Stage = step
	info.Touched, info.Committed = j.commit.Stamp, j.commit.Revision
	info.Changed = step.Verdict.Created + step.Verdict.Replaced
	j.result.Stage, j.result.Changed = info, int(info.Changed)
	return nil, nil
}

// otherDigest reports whether a commit means other updates than were staged.
func otherDigest(s *graph.Stage, info graph.StageInfo) bool {
	return s.Digest != graph.StageDigest{} && s.Digest != info.Digest
}

// collectStages forgets what nobody goes on with.
func (j *judgement) collectStages() error {
	stages, err := j.snapshot.graph.Stages()
	if err != nil {
		return err
	}
	step := &graph.StageStep{Operation: graph.StageDrop}
	for _, info := range stages {
		if info.Touched+graph.StageLifetime <= j.commit.Stamp {
			step.Drop = append(step.Drop, info.ID)
		}
	}
	if len(step.Drop) > 0 {
		j.commit.Stage = step
	}
	return nil
}
