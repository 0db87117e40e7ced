package nft

import "context"

// Look is what a Guard does when rules were changed: it tells whether others had.
func (g *Guard) Look(ctx context.Context) (bool, error) {
	looked, _, err := g.look(ctx)
	return looked, err
}

// LookAnyway is how long a Guard waits for notifications.
const LookAnyway = lookAnyway
