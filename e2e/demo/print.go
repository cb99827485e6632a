package main

import (
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// printer writes for a person: with colour on a terminal, plain otherwise.
type printer struct{ color bool }

// isTerminal says whether a person is looking.
func isTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// Colours by their numbers in ECMA-48 (SGR).
const (
	bold  = "1"
	dim   = "2"
	red   = "31"
	green = "32"
	cyan  = "36"
)

func (p printer) paint(code, text string) string {
	if !p.color {
		return text
	}
	return "\x1b[" + code + "m" + text + "\x1b[0m"
}

func (p printer) title(text string) { fmt.Printf("\n%s\n", p.paint(bold, text)) }

func (p printer) done(step string, since time.Duration) {
	fmt.Printf("  %s %s %s\n", p.paint(green, "ok"), step, p.paint(dim, fmt.Sprintf("(%.1f s)", since.Seconds())))
}

func (p printer) line(format string, args ...any) { fmt.Printf("  "+format+"\n", args...) }

func (p printer) command(text string) { fmt.Println("  " + p.paint(cyan, text)) }

// failed names the step and shows what may tell why.
func (p printer) failed(step string, err error, logs string) {
	fmt.Printf("\n%s %s: %v\n", p.paint(red, "FAILED"), step, err)
	if logs != "" {
		fmt.Println(strings.TrimSpace(logs))
	}
}

// table prints rows with columns as wide as their widest cell. The first row is the head.
func (p printer) table(rows [][]string) {
	var widths []int
	for _, row := range rows {
		for i, cell := range row {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], len(cell))
		}
	}
	for n, row := range rows {
		var b strings.Builder
		for i, cell := range row {
			fmt.Fprintf(&b, "%-*s  ", widths[i], cell)
		}
		text := strings.TrimRight(b.String(), " ")
		if n == 0 {
			text = p.paint(dim, text)
		}
		p.line("%s", text)
	}
}
