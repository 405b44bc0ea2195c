# sh -c supervise.sh NAME FOLDER: ends every process of the sandbox FOLDER, and removes it, once its owner has gone.
# The owner holds the writing end of our stdin and nobody else does, so even its kill -9 ends the read below.
# Processes are known by their environment: the broker's helpers leave their process group and session.
cat >/dev/null
round=0
while [ $round -lt 200 ]; do
    processes=$(grep -lszxF "LENSPOOL_TEST_SANDBOX=$1" /proc/[0-9]*/environ | cut -d/ -f3)
    [ -n "$processes" ] || break
    kill -9 $processes 2>/dev/null
    sleep 0.05
    round=$((round + 1))
done
rm -rf "$1"
